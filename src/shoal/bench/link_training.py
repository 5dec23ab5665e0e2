"""Training over a link of 1 Gbit/s and 20 ms: what sending less is worth there.

A GPT trains on two workers, one on each side of the link; of Shoal's servers there is one beside each, as with
DistributedDataParallel every worker keeps its part. So a gradient's half crosses the link, each way, and then the
parameters' other half: what a ring of two sends. The sides take turns, and every side's step is forward, backward,
and the optimizer's step:

    compute     alone, with torch's fused optimizer: no faster is possible
    ddp         fp32, all-reduced over gloo in buckets during backward
    bfloat16    ps.optimizer(..., push="bfloat16", pull="bfloat16", overlap=True), Sync()
    int8        the same in int8
    streaming   Streaming DiLoCo (arXiv 2501.18512): two fragments, each every H steps in e3m0, taken tau steps later

A turn's steps are timed as a whole: those of `streaming` are not alike. Checked at the end: all workers of a side hold
the same bits.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.namespaces import SERVERS_HOST, WORKERS_HOST, Link, Shape, joined
from shoal.bench.orders import BOTH, COMPUTE, Answer, Order, Size, worker_name
from shoal.bench.overlap import Plan as OverlapPlan
from shoal.bench.sides import ORDER_SECONDS, Show, Side
from shoal.bench.verdict import WrongResultError
from shoal.errors import ConfigurationError
from shoal.launch.crew import COORDINATOR_PROGRAM, SERVER_PROGRAM
from shoal.vocabulary import COORDINATOR

PROGRAM = ("-m", "shoal.bench.link_training_worker")
WORKERS = 2
READY_SECONDS = 240.0
DDP = "ddp"


class Method(msgspec.Struct, frozen=True):
    """A side. codec: both ways. every, fragments, overlap: of LocalSteps; every 0: Sync(). must: of DDP's speed, or
    with `bound` of what computing alone takes."""

    name: str
    codec: str = ""
    every: int = 0
    fragments: int = 1
    overlap: int = 0
    must: float = 0.0
    bound: bool = False


METHODS = (
    Method(DDP),
    Method("bfloat16", codec="bfloat16", must=1.8),
    Method("int8", codec="int8", must=3.0),
    Method("streaming", codec="e3m0", every=50, fragments=2, overlap=5, must=0.95, bound=True),
)


class Trainee(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker of which side this is. steps: of a turn."""

    method: Method
    rank: int
    steps: int
    size: Size
    control: str
    meeting: str

    @property
    def name(self) -> str:
        """What this process is called in errors."""
        return worker_name(self.method.name, self.rank)


@dataclass(frozen=True)
class Plan:
    """What to train. steps: of each side in a round, rounded up to whole windows."""

    params: int = 10_000_000
    batch: int = 1
    context: int = 64
    steps: int = 10
    rounds: int = 3
    shape: Shape = field(default_factory=Shape)

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least 1")
        self.model.check()

    @property
    def model(self) -> OverlapPlan:
        return OverlapPlan(self.params, batch=self.batch, context=self.context)


class LinkTrainingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A side. seconds: of a step, by round. of_ddp, of_compute: its speed over DDP's, and over computing alone, by the
    medians. must: what `of_ddp`, or where `bound` is set `of_compute`, is to reach."""

    bench: str = "link-training"
    name: str
    params: int
    tokens: int
    seconds: list[float]
    of_ddp: float
    of_compute: float
    must: float
    bound: bool
    delayed_by: str


def train_over_link(plan: Plan, show: Show) -> Iterator[LinkTrainingRow]:
    """Measure, and check what came out: a row for each side, compute first.

    Ask namespaces.obstacle() first. Raises WrongResultError when workers of a side differ, JobError, StartupError or
    DeadlineError when a process fails.
    """
    plan.check()
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder,
        Fleet("bench-link", WORKERS, WORKERS, SERVERS_HOST) as fleet,
        joined(plan.shape, fleet) as link,
        Conductor(Path(folder, "control"), fleet.check, fleet.why) as conductor,
    ):
        run = _Run(plan, fleet, link, conductor, Path(folder), show)
        seconds = run.measure()
        for side in run.sides:
            run.check(side)
    for name, found in seconds.items():
        yield _row(plan, link, name, found, seconds)


def _row(plan: Plan, link: Link, name: str, found: list[float], seconds: dict[str, list[float]]) -> LinkTrainingRow:
    method = next((method for method in METHODS if method.name == name), Method(name))
    middle = statistics.median(found)
    size = plan.model.size
    return LinkTrainingRow(
        name=name,
        params=plan.params,
        tokens=size.batch * size.context,
        seconds=found,
        of_ddp=statistics.median(seconds[DDP]) / middle,
        of_compute=statistics.median(seconds[COMPUTE]) / middle,
        must=method.must,
        bound=method.bound,
        delayed_by=link.delayed_by,
    )


class _Run:
    """The processes of all sides, and their turns."""

    def __init__(self, plan: Plan, fleet: Fleet, link: Link, conductor: Conductor, folder: Path, show: Show) -> None:
        self._plan, self._fleet, self._link, self._conductor, self._folder = plan, fleet, link, conductor, folder
        self._show, self._done, self._turns = show, 0, 1 + (plan.rounds + 1) * (len(METHODS) + 1)
        self.sides = [
            Side(method.name, [worker_name(method.name, rank) for rank in range(WORKERS)]) for method in METHODS
        ]

    def measure(self) -> dict[str, list[float]]:
        """Seconds of a step, by side, in each round; the first round does not count."""
        self._say("starting processes")
        for method in METHODS:
            self._start(method)
        for side in self.sides:
            self._conductor.gather(side.workers, READY_SECONDS)
        turns = [(COMPUTE, self.sides[0], COMPUTE, 1)] + [
            (side.name, side, BOTH, method.every or 1) for method, side in zip(METHODS, self.sides, strict=True)
        ]
        seconds: dict[str, list[float]] = {name: [] for name, *_ in turns}
        for number in range(self._plan.rounds + 1):
            for name, side, part, window in turns:
                self._say(f"round {number} of {self._plan.rounds}: {name}" if number else f"{name} warms up")
                steps = -(-self._plan.steps // window) * window
                took = sum(side.turn(steps, self._conductor, part=part))
                if number:
                    seconds[name].append(took / steps)
        return seconds

    def check(self, side: Side) -> None:
        """Raises WrongResultError where workers of the side hold other bits than each other."""
        order = dict.fromkeys(side.workers, Order(0))
        answers = self._conductor.ask(order, Answer, ORDER_SECONDS, "the check").values()
        if len({digest for answer in answers for digest in answer.digests}) != 1:
            raise WrongResultError(f"the workers of {side.name} do not hold the same parameters: their digests differ")

    def _start(self, method: Method) -> None:
        place = self._link.place
        facts: dict[str, object] = {} if method.name == DDP else {"SHOAL_COORDINATOR": self._start_job(method.name)}
        for rank, seat in enumerate(place.alone):
            trainee = Trainee(
                method=method,
                rank=rank,
                steps=self._plan.steps,
                size=self._plan.model.size,
                control=str(self._folder / "control"),
                meeting=str(self._folder / "meeting"),
            )
            own = {
                "SHOAL_RANK": rank,
                "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // WORKERS),
                "GLOO_SOCKET_IFNAME": seat.interface,
            }
            arguments = (*PROGRAM, msgspec.json.encode(trainee).decode())
            self._fleet.start(trainee.name, arguments, seat.prefix, **facts, **own)

    def _start_job(self, name: str) -> str:
        """A coordinator on the first side, and a server on each; returns the coordinator's address."""
        seats = list(zip(self._link.place.alone, (SERVERS_HOST, WORKERS_HOST), strict=True))
        coordinator = f"{COORDINATOR} of {name}"
        listen = f"tcp://{SERVERS_HOST}:0"
        self._fleet.start(coordinator, (*COORDINATOR_PROGRAM, "--listen", listen), seats[0][0].prefix)
        address = self._fleet.ready(coordinator)
        for index, (seat, host) in enumerate(seats):
            own = {"SHOAL_SERVER_INDEX": index, "SHOAL_COORDINATOR": address, "SHOAL_LISTEN": f"tcp://{host}:0"}
            self._fleet.start(f"server {index} of {name}", SERVER_PROGRAM, seat.prefix, **own)
        for index in range(len(seats)):
            self._fleet.ready(f"server {index} of {name}")
        return address

    def _say(self, what: str) -> None:
        self._show(what, min(self._done, self._turns), self._turns)
        self._done += 1
