"""How much of the exchange hides behind compute, while a real GPT trains on real batches.

The same worker processes take three kinds of steps in turn, round by round:

    (a) compute     forward and backward alone; nothing is exchanged, parameters stay
    (b) exchange    gradients out, update, parameters in; nothing is computed
    (c) both        training through ps.optimizer, where gradients leave while backward still runs

    share hidden = 1 - (c - a) / b, of the medians: 1 where training takes no longer than computing,
    0 where an exchange takes all of its time behind compute.

Beside them, in the same rounds, DistributedDataParallel over gloo with the fused optimizer trains the same
model: the ratio is (c) over its step. Cores are shared out evenly among the workers; the servers have
none of their own. A kind's first step in a turn is not counted.

Checked at the end (verdict.py): both sides hold what one process makes of the mean gradient of all batches.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.orders import BOTH, COMPUTE, EXCHANGE, SHOAL, Size, Trainee, worker_name
from shoal.bench.rows import Row, Seconds
from shoal.bench.rules import RULES
from shoal.bench.shapes import GPT_MIN, gpt_size
from shoal.bench.sides import Show, Side, parts
from shoal.bench.verdict import TOLERANCE
from shoal.errors import ConfigurationError

PEER_NAMES = ("ddp", "none")
TRANSPORTS = ("shm", "tcp")
KINDS = (COMPUTE, EXCHANGE, BOTH)
HEADS_MAX = 8
VOCABULARY_MIN = 16
READY_SECONDS = 240.0
PROGRAM = ("-m", "shoal.bench.overlap_worker")

_Say = Callable[[str, int], None]


@dataclass(frozen=True)
class Plan:
    """What to measure. steps: of each kind, dealt out over `rounds` turns; batch: sequences of `context` tokens."""

    params: int = 10_000_000
    workers: int = 2
    servers: int = 1
    transport: str = "shm"
    optimizer: str = "adamw"
    peer: str = "ddp"
    batch: int = 4
    context: int = 128
    steps: int = 20
    warmup: int = 3
    rounds: int = 5

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name, known in (("transport", TRANSPORTS), ("optimizer", tuple(RULES)), ("peer", PEER_NAMES)):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"--{name} {getattr(self, name)}: known are {', '.join(known)}")
        bounds = (
            ("params", GPT_MIN), ("workers", 1), ("servers", 1), ("batch", 1), ("context", 2), ("steps", 1),
            ("warmup", 2), ("rounds", 1),
        )  # fmt: skip
        for name, least in bounds:
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least {least}")

    @property
    def size(self) -> Size:
        """A GPT of about this many parameters, with as many tokens in its vocabulary as are left for them."""
        layers, width = gpt_size(self.params)
        return Size(
            vocabulary=max(VOCABULARY_MIN, (self.params - _without_vocabulary(layers, width, self.context)) // width),
            context=self.context,
            layers=layers,
            heads=max(heads for heads in range(1, HEADS_MAX + 1) if width % heads == 0),
            width=width,
            batch=self.batch,
        )


class OverlapRow(Row, frozen=True, kw_only=True):
    """Training, and its halves. seconds: of (c). *_step_seconds: each counted step in order.

    hidden_share: 1 - (c - a) / b, of all steps; hidden_share_by_round: of each round's own, to see the noise.
    tokens: of one worker's step.
    """

    tokens: int
    compute_seconds: Seconds
    exchange_seconds: Seconds
    peer_seconds: Seconds | None
    hidden_share: float
    hidden_share_by_round: list[float]
    step_seconds: list[float]
    compute_step_seconds: list[float]
    exchange_step_seconds: list[float]
    peer_step_seconds: list[float]
    difference: float
    peer_difference: float | None
    tolerance: float = TOLERANCE


def overlap(plan: Plan, show: Show) -> OverlapRow:
    """Measure, and check what came out.

    Raises WrongResultError when a side computed something else, and JobError, StartupError or
    DeadlineError when one of its processes fails.
    """
    plan.check()
    names = [SHOAL] if plan.peer == "none" else [SHOAL, plan.peer]
    sides = [Side(name, [worker_name(name, rank) for rank in range(plan.workers)]) for name in names]
    turns = 1 + 2 * len(sides) + plan.rounds * (len(KINDS) + len(sides) - 1)
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder,
        Fleet("bench-overlap", plan.workers, plan.servers) as fleet,
        Conductor(Path(folder, "control"), fleet.check, fleet.why) as conductor,
    ):
        show("starting processes", 0, turns)
        for side in sides:
            _start(plan, side, fleet, Path(folder))
        for side in sides:
            conductor.gather(side.workers, READY_SECONDS)
        seconds = _measure(plan, sides, conductor, lambda what, done: show(what, 1 + done, turns))
        for done, side in enumerate(sides):
            show(f"checking {side.name}", turns - len(sides) + done, turns)
            side.check(conductor)
    return _row(plan, sides, seconds)


def _measure(plan: Plan, sides: list[Side], conductor: Conductor, show: _Say) -> dict[str, list[float]]:
    """Seconds of each counted step, by kind; the peer's by its name."""
    ours, *others = sides
    turns = [(kind, ours, kind) for kind in KINDS] + [(peer.name, peer, BOTH) for peer in others]
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in turns}
    done = 0
    for side in sides:
        show(f"{side.name} warms up", done)
        for kind in KINDS if side is ours else (BOTH,):
            side.turn(plan.warmup, conductor, part=kind)
        done += 1
    for number, steps in enumerate(parts(plan.steps, plan.rounds), 1):
        for name, side, kind in turns:
            show(f"round {number} of {plan.rounds}: {name}", done)
            if steps:
                seconds[name] += side.turn(steps + 1, conductor, part=kind)[1:]
            done += 1
    return seconds


def _start(plan: Plan, side: Side, fleet: Fleet, folder: Path) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // plan.workers)
    facts = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
    if side.name == SHOAL:
        facts["SHOAL_TRANSPORT"] = plan.transport
        facts["SHOAL_COORDINATOR"] = fleet.start_job(SHOAL_TRANSPORT=plan.transport)
    for rank, name in enumerate(side.workers):
        trainee = Trainee(
            side=side.name,
            rank=rank,
            workers=plan.workers,
            optimizer=plan.optimizer,
            size=plan.size,
            control=str(folder / "control"),
            meeting=str(folder / "meeting"),
        )
        arguments = (*PROGRAM, msgspec.json.encode(trainee).decode())
        fleet.start(name, arguments, (), SHOAL_RANK=rank, **facts)


def _row(plan: Plan, sides: list[Side], seconds: dict[str, list[float]]) -> OverlapRow:
    peer = sides[1] if len(sides) > 1 else None
    theirs = seconds[peer.name] if peer else []
    middle = statistics.median(seconds[BOTH])
    size = plan.size
    return OverlapRow(
        bench="overlap",
        params=_without_vocabulary(size.layers, size.width, size.context) + size.vocabulary * size.width,
        workers=plan.workers,
        servers=plan.servers,
        transport=plan.transport,
        policy="Sync()",
        optimizer=plan.optimizer,
        peer=peer.name if peer else None,
        seconds=Seconds.of(seconds[BOTH]),
        ratio=middle / statistics.median(theirs) if theirs else None,
        floor_share=None,
        tokens=size.batch * size.context,
        compute_seconds=Seconds.of(seconds[COMPUTE]),
        exchange_seconds=Seconds.of(seconds[EXCHANGE]),
        peer_seconds=Seconds.of(theirs) if theirs else None,
        hidden_share=_hidden(seconds, 0, plan.steps),
        hidden_share_by_round=_by_round(plan, seconds),
        step_seconds=seconds[BOTH],
        compute_step_seconds=seconds[COMPUTE],
        exchange_step_seconds=seconds[EXCHANGE],
        peer_step_seconds=theirs,
        difference=sides[0].difference,
        peer_difference=peer.difference if peer else None,
    )


def _by_round(plan: Plan, seconds: dict[str, list[float]]) -> list[float]:
    ends = list(accumulate(parts(plan.steps, plan.rounds), initial=0))
    return [_hidden(seconds, begin, end) for begin, end in pairwise(ends) if end > begin]


def _hidden(seconds: dict[str, list[float]], begin: int, end: int) -> float:
    """The share hidden, by the medians of these counted steps of each kind."""
    compute, exchange, both = (statistics.median(seconds[kind][begin:end]) for kind in KINDS)
    return 1 - (both - compute) / exchange


def _without_vocabulary(layers: int, width: int, context: int) -> int:
    """Elements of a GPT with biases, but for its token embedding (which is its head)."""
    return layers * (12 * width * width + 13 * width) + (context + 2) * width
