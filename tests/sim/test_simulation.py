"""Simulated clusters: what must always hold, holds; and the simulation sees it when it does not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.sim import __main__ as command
from shoal.sim import world as simulated
from shoal.sim.campaign import FIGURES, run_seed
from shoal.sim.invariants import Violation
from shoal.sim.planted import PLANTS, Plant
from shoal.sim.planted_replicas import SeesNoDifference, with_part
from shoal.sim.scenario import draw
from shoal.sim.store import Store
from shoal.sim.transcript import transcript
from shoal.sim.world import Machines, World

LINES = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
KNOWN = [int(line.split()[0]) for line in LINES if not line.startswith("#")]
PLANTED_SEEDS_MAX = 600  # within so many seeds every planted fault is found
PLANTED_DEADLINE_MS = 15_000  # a job that a fault makes hang is known for one sooner than others


@pytest.mark.parametrize("seed", [*range(40), *KNOWN])
def test_every_invariant_holds(seed: int) -> None:
    outcome = run_seed(seed)
    assert not outcome.invariant, f"{outcome.transcript}\n{outcome.invariant}: {outcome.complaint}"


def test_the_seeds_see_every_policy_and_every_fault() -> None:
    outcomes = [run_seed(seed) for seed in range(130)]
    total = sum((outcome.figures for outcome in outcomes), Counter())
    assert {outcome.label for outcome in outcomes} == {"sync", "sync with quorum", "bounded", "async", "decoupled"}
    missing = [figure for figure in FIGURES if not total[figure]]
    assert not missing, f"no {missing} in these seeds"


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.fault for plant in PLANTS])
def test_a_planted_fault_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "DEADLINE_MS", PLANTED_DEADLINE_MS)
    for seed in range(plant.seed, plant.seed + PLANTED_SEEDS_MAX):
        if run_seed(seed, plant.machines).invariant == plant.invariant:
            monkeypatch.undo()
            assert not run_seed(seed).invariant, "the machines as they are pass the same seed"
            return
    pytest.fail(f"{plant.invariant} did not notice in {PLANTED_SEEDS_MAX} seeds that {plant.fault}")


class ErringStore(Store):
    """Memory in which one bit flips, once, after an update."""

    sound = False

    @property
    def checksum(self) -> int:
        if not self.sound:
            self.sound = True
            self.states[min(self.states)] ^= 1
        return super().checksum


def with_erring_backup(seed: int, machines: Machines) -> World:
    """No server is lost, so the last one is a backup."""
    scenario = replace(draw(seed), losses=(), drains=(), falls=(), freezes=(), cuts=())
    world = World(scenario, machines, lines_max=None)

    def err() -> None:
        world.servers.every[-1].store.__class__ = ErringStore

    world.at(0, err)
    return world


@pytest.mark.parametrize("seed", [seed for seed in range(12) if draw(seed).job.replicas > 1])
def test_a_backup_whose_memory_errs_is_replaced(seed: int) -> None:
    world = with_erring_backup(seed, Machines())
    world.run()
    last = world.scenario.job.servers * world.scenario.job.replicas - 1
    told = transcript(world.lines)
    assert re.search(rf"server {last} .* is gone: its checksum of version 1 is not its primary's", told)
    assert world.servers[last].gone
    with pytest.raises(Violation, match="wrong parameters") as violation:
        with_erring_backup(seed, with_part(SeesNoDifference)).run()
    assert violation.value.invariant == "Ordered", "without the checksum its next update shows it"


def test_a_seed_is_one_run_to_the_last_event() -> None:
    runs = []
    for _ in range(2):
        world = World(draw(7), lines_max=None)
        world.run()
        runs.append(transcript(world.lines))
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) > 50


def test_the_command_shows_what_failed_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plant = next(plant for plant in PLANTS if plant.fault == "a shard frees too early")
    monkeypatch.setattr(command, "run_seed", lambda seed, lines_max=60: run_seed(seed, plant.machines, lines_max))
    result = CliRunner().invoke(command.app, ["--seeds", "4", "--jobs", "1"])
    assert result.exit_code == 1
    assert "Memory does not hold" in result.output
    assert re.search(r"Replay: python -m shoal.sim --seed \d+ --transcript", result.output)
    assert re.search(r"\d+ ms  coordinator -> server/\d +Commit\(", result.output), "the transcript is readable"


def test_the_command_sums_up_and_succeeds() -> None:
    result = CliRunner().invoke(command.app, ["--seeds", "8", "--jobs", "1", "--start", "20"])
    assert result.exit_code == 0, result.output
    assert "Every invariant held" in result.output
    assert "crashes" in result.output


def test_the_ranks_of_a_group_are_told_who_of_them_died() -> None:
    told = ""
    for seed in (seed for seed in range(200) if any(habits.group for habits in draw(seed).workers)):
        world = World(draw(seed), lines_max=None)
        world.run()
        told += transcript(world.lines)
    assert re.search(
        r"Failed\(kind=FencedError, text=worker (\d) .* it is of the group of workers \d, .*all of which have to be "
        r"started again: worker (?!\1)\d is declared dead: its connection broke",
        told,
    )
