"""A campaign: many seeds, each run once (Sync without faults of workers twice), and their sum."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from shoal.sim.invariants import Violation
from shoal.sim.scenario import draw
from shoal.sim.transcript import transcript
from shoal.sim.world import LINES_MAX, Machines, World
from shoal.vocabulary import Weighted
from shoal.wire import messages as m

FIGURES = (
    "events", "commits", "crashes", "frozen", "fenced", "lost", "duplicated", "ghosts", "forged", "breaks", "falls",
    "losses", "drains", "changes", "outages", "oustings", "torn", "deposed", "silent", "stopped",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one seed came to."""

    seed: int
    label: str
    invariant: str  # "" when all of them held
    complaint: str
    transcript: str  # its end; only of a run that failed
    figures: Counter[str]


def run_seed(seed: int, machines: Machines | None = None, lines_max: int | None = LINES_MAX) -> Outcome:
    """Run the scenario of `seed`, and compare the log of two networks where it must be the same."""
    scenario = draw(seed)
    worlds = [World(scenario, machines, network_seed, lines_max) for network_seed in range(1 + scenario.paired)]
    outcome = partial(Outcome, seed, scenario.label)
    try:
        for world in worlds:
            world.run()
        if scenario.paired:
            _same(*worlds)
    except Violation as violation:
        return outcome(violation.invariant, violation.complaint, transcript(world.lines), _figures(worlds))
    told = transcript(world.lines) if lines_max is None else ""
    return outcome("", "", told, _figures(worlds))


def _figures(worlds: list[World]) -> Counter[str]:
    total: Counter[str] = Counter()
    for world in worlds:
        network, figures = world.network.counts, world.figures
        total.update(
            events=figures.events,
            commits=len(world.trace.log),
            crashes=figures.crashes,
            frozen=figures.frozen,
            fenced=figures.fenced,
            lost=network.lost,
            duplicated=network.duplicated,
            ghosts=network.ghosts,
            forged=figures.forged,
            breaks=figures.breaks,
            falls=figures.falls,
            losses=figures.losses,
            drains=figures.drains,
            changes=figures.changes,
            outages=figures.outages,
            oustings=figures.oustings,
            torn=figures.torn,
            deposed=figures.deposed,
            silent=figures.silent,
            stopped=figures.stopped,
        )
    return total


# --- Deterministic: the same work gives the same log, whatever the network does -------------------


def _same(one: World, other: World) -> None:
    """Violation unless both runs committed the same, in the same order, to the same parameters."""
    if one.figures.stopped or other.figures.stopped:
        return
    for first, second in zip(_updates(one), _updates(other), strict=False):
        if first != second:
            raise Violation("Deterministic", f"under another network {first} became {second}")
    if len(_updates(one)) != len(_updates(other)):
        lengths = f"{len(_updates(one))} and {len(_updates(other))}"
        raise Violation("Deterministic", f"the logs of two networks hold {lengths} updates")
    if one.trace.right_states(len(one.trace.log)) != other.trace.right_states(len(other.trace.log)):
        raise Violation("Deterministic", "the parameters differ under another network")


def _updates(world: World) -> list[m.Commit]:
    """The entries that change parameters, without what may differ: numbers, incarnations, readers."""
    return [
        m.Commit(
            epoch=0,
            seq=0,
            kind=entry.kind,
            contributors=tuple(
                Weighted(replace(item.contributor, incarnation=0), item.weight) for item in entry.contributors
            ),
            rates=entry.rates,
            samples=entry.samples,
        )
        for entry in world.trace.log
        if entry.kind != "cut"
    ]
