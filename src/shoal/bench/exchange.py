"""Gradients in, update, parameters out: how long an exchange takes, beside a peer in the same run.

Both sides are alive throughout and take turns, some steps each; the idle one waits for a line on a
socket (Shoal's nodes look at the clock twenty times a second), so the machine's moods hit both. A
step is one turn of the loop a user writes (forward, backward, optimizer.step, zero_grad) on a model whose
forward and backward compute nothing: through Shoal's public optimizer on one side, DDP or a flat
all-reduce and torch's fused optimizer on the other. The first step of each turn is not counted: the
caches still hold the other side's data. A step's time is that of its slowest worker.

Every run is checked at its end. All workers of a side must hold the same bits, and on each side the
parameters must be those of one process with torch's own optimizer on the mean gradient, within
TOLERANCE. If not, there is no result but an error.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.floor import COPIES, Bandwidth, touched_bytes
from shoal.bench.orders import SHOAL, Answer, Order, Setup, worker_name
from shoal.bench.rows import Row, Seconds
from shoal.bench.rules import RULES
from shoal.bench.shapes import elements, gpt_shapes
from shoal.errors import ConfigurationError, ShoalError

TOLERANCE = 1e-5  # of a parameter's absolute difference from the reference, after all steps
PEER_NAMES = ("ddp", "allreduce", "none")
READY_SECONDS = 180.0
ORDER_SECONDS = 600.0

Show = Callable[[str, int, int], None]  # what is under way, turns done, turns in all


class WrongResultError(ShoalError):
    """A side's parameters are not what its optimizer should have made of them."""


@dataclass(frozen=True)
class Plan:
    """What to measure. steps: of each side, dealt out over `rounds` turns; warmup: of each side, before."""

    params: int
    workers: int = 2
    servers: int = 1
    transport: str = "tcp"
    optimizer: str = "adamw"
    peer: str = "ddp"
    steps: int = 50
    warmup: int = 5
    rounds: int = 5

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name, known in (("transport", COPIES), ("optimizer", RULES), ("peer", PEER_NAMES)):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"--{name} {getattr(self, name)}: known are {', '.join(known)}")
        for name, least in (("workers", 1), ("servers", 1), ("steps", 1), ("warmup", 2), ("rounds", 1)):
            # Two steps before the first turn: in one Shoal and DDP learn in which order gradients come.
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least {least}")


class ExchangeRow(Row, frozen=True, kw_only=True):
    """One exchange. step_seconds, peer_step_seconds: each counted step in order.

    difference, peer_difference: of the worst parameter from the reference. floor_seconds: see floor.py.
    """

    step_seconds: list[float]
    difference: float
    steps_checked: int
    peer_seconds: Seconds | None
    peer_step_seconds: list[float]
    peer_difference: float | None
    floor_seconds: float
    bandwidth_bytes_per_second: float
    tolerance: float = TOLERANCE


@dataclass
class Side:
    """One of the two, and what was measured of it."""

    name: str
    workers: Sequence[str]
    seconds: list[float] = field(default_factory=list)
    steps: int = 0  # taken in all
    difference: float = 0.0


def exchange(plan: Plan, show: Show) -> ExchangeRow:
    """Measure, and check what came out.

    Raises WrongResultError when a side computed something else, and JobError, StartupError or
    DeadlineError when one of its processes fails.
    """
    plan.check()
    sides = [Side(name, [worker_name(name, rank) for rank in range(plan.workers)]) for name in _side_names(plan)]
    bandwidth = Bandwidth()
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder,
        Fleet("bench-exchange", plan.workers, plan.servers) as fleet,
        Conductor(Path(folder, "control"), fleet.check, fleet.why) as conductor,
    ):
        turns = 3 * len(sides) + len(sides) * plan.rounds
        show("starting processes", 0, turns)
        for side in sides:
            _start(plan, side, fleet, Path(folder))
        for done, side in enumerate(sides, 1):
            conductor.gather(side.workers, READY_SECONDS)
            show(f"{side.name} is ready", done, turns)
        _measure(plan, sides, conductor, bandwidth, lambda what, done: show(what, done + len(sides), turns))
        for done, side in enumerate(sides, turns - len(sides)):
            show(f"checking {side.name}", done, turns)
            answers = conductor.ask(dict.fromkeys(side.workers, Order(0)), Answer, ORDER_SECONDS, "the check")
            side.difference = verify(side.name, list(answers.values()))
        show("done", turns, turns)
    return _row(plan, sides, bandwidth.bytes_per_second())


def verify(side: str, answers: Sequence[Answer]) -> float:
    """The worst parameter's difference from the reference; WrongResultError if it, or any bit, is wrong."""
    if len({answer.digest for answer in answers}) != 1:
        raise WrongResultError(f"the workers of {side} do not hold the same parameters: their digests differ")
    (found,) = (answer.difference for answer in answers if answer.difference is not None)
    if not found <= TOLERANCE:
        raise WrongResultError(
            f"a parameter of {side} is {found:.3g} off that of torch's optimizer on the mean gradient, more than "
            f"{TOLERANCE:g}: what was timed is not the exchange, so there is no result"
        )
    return found


def _measure(
    plan: Plan, sides: Sequence[Side], conductor: Conductor, bandwidth: Bandwidth, show: Callable[[str, int], None]
) -> None:
    """Warm up, then let the sides take turns."""
    for done, side in enumerate(sides):
        show(f"{side.name} warms up", done)
        _turn(side, plan.warmup, conductor)
    parts = [
        plan.steps * (number + 1) // plan.rounds - plan.steps * number // plan.rounds for number in range(plan.rounds)
    ]
    for number, steps in enumerate(parts):
        bandwidth.look()
        for position, side in enumerate(sides):
            show(f"round {number + 1} of {plan.rounds}: {side.name}", (1 + number) * len(sides) + position)
            if steps:
                side.seconds += _turn(side, steps + 1, conductor)[1:]


def _turn(side: Side, steps: int, conductor: Conductor) -> list[float]:
    """Seconds of each step, as its slowest worker saw it."""
    answers = conductor.ask(dict.fromkeys(side.workers, Order(steps)), Answer, ORDER_SECONDS, f"{steps} steps")
    side.steps += steps
    return [max(each) for each in zip(*(answer.seconds for answer in answers.values()), strict=True)]


def _side_names(plan: Plan) -> list[str]:
    return [SHOAL] if plan.peer == "none" else [SHOAL, plan.peer]


def _start(plan: Plan, side: Side, fleet: Fleet, folder: Path) -> None:
    together = side.name == SHOAL and plan.transport == "inproc"
    facts: Mapping[str, object] = {
        "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // plan.workers),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if side.name == SHOAL and not together:
        facts = {**facts, "SHOAL_COORDINATOR": fleet.start_job()}
    for rank, name in enumerate(side.workers[:1] if together else side.workers):
        setup = Setup(
            side=side.name,
            rank=rank,
            params=plan.params,
            workers=plan.workers,
            servers=plan.servers,
            transport=plan.transport,
            optimizer=plan.optimizer,
            control=str(folder / "control"),
            meeting=str(folder / "meeting"),
        )
        arguments = ("-m", "shoal.bench.exchange_worker", msgspec.json.encode(setup).decode())
        fleet.start(name, arguments, SHOAL_RANK=rank, **facts)


def _row(plan: Plan, sides: Sequence[Side], bytes_per_second: float) -> ExchangeRow:
    ours, peer = sides[0], sides[1] if len(sides) > 1 else None
    params = elements(gpt_shapes(plan.params))
    middle = statistics.median(ours.seconds)
    floor = touched_bytes(params, plan.workers, len(RULES[plan.optimizer].states), plan.transport) / bytes_per_second
    return ExchangeRow(
        bench="exchange",
        params=params,
        workers=plan.workers,
        servers=plan.servers,
        transport=plan.transport,
        policy="Sync()",
        optimizer=plan.optimizer,
        peer=peer.name if peer else None,
        seconds=Seconds.of(ours.seconds),
        ratio=middle / statistics.median(peer.seconds) if peer else None,
        floor_share=floor / middle,
        step_seconds=ours.seconds,
        difference=ours.difference,
        steps_checked=ours.steps,
        peer_seconds=Seconds.of(peer.seconds) if peer else None,
        peer_step_seconds=peer.seconds if peer else [],
        peer_difference=peer.difference if peer else None,
        floor_seconds=floor,
        bandwidth_bytes_per_second=bytes_per_second,
    )
