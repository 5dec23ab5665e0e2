"""What a snapshot costs the training that goes on beside it: the pause of the step that carries it, and all delay.

Two workers take the steps of `exchange` (backward costs nothing, so every core is busy with parameters) under
Sync(). Turns of plain steps and turns in which worker 0 has one snapshot written alternate. A turn with a snapshot
begins with the step that carries it, and ends with the first step that ends after the manifest is complete:

    delay = seconds of these steps - their number * mean seconds of the plain steps before and after
    share = delay / seconds from the request until the manifest is complete

A first snapshot, in which servers touch the memory for their copy for the first time, is told apart.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.orders import SHOAL, Keeper, Shot, Taken, worker_name
from shoal.bench.rows import Row, Seconds
from shoal.bench.rules import RULES
from shoal.bench.shapes import PARAMS_MIN, elements, gpt_shapes
from shoal.bench.sides import ORDER_SECONDS, Show
from shoal.errors import ConfigurationError
from shoal.storage.manifest import read
from shoal.storage.place import place

TRANSPORTS = ("shm", "tcp")
READY_SECONDS = 240.0
SHARE_MAX = 0.05  # of its writing time, that a snapshot may delay training
PROGRAM = ("-m", "shoal.bench.snapshot_worker")


@dataclass(frozen=True)
class Plan:
    """What to measure. steps: plain ones before and after each of `snapshots` snapshots.

    folder: where they are written, and removed again.
    """

    params: int = 100_000_000
    workers: int = 2
    servers: int = 1
    transport: str = "shm"
    optimizer: str = "adamw"
    steps: int = 20
    warmup: int = 3
    snapshots: int = 3
    folder: Path = Path(tempfile.gettempdir())

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name, known in (("transport", TRANSPORTS), ("optimizer", tuple(RULES))):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"--{name} {getattr(self, name)}: known are {', '.join(known)}")
        bounds = (("params", PARAMS_MIN), ("workers", 1), ("servers", 1), ("steps", 1), ("warmup", 1), ("snapshots", 1))
        for name, least in bounds:
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least {least}")
        if not self.folder.is_dir():
            raise ConfigurationError(f"--folder {self.folder} is no directory")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot. writing_seconds: from the request until the manifest is complete. size_bytes: of its files.

    step_seconds: of the steps meanwhile, the one that carries it first. plain_seconds: mean of a step without.
    pause_seconds: of the slower of the first two steps, over plain_seconds. delay_share: of writing_seconds.
    """

    writing_seconds: float
    size_bytes: int
    plain_seconds: float
    step_seconds: list[float]
    pause_seconds: float
    delay_seconds: float
    delay_share: float

    @classmethod
    def of(cls, writing_seconds: float, size_bytes: int, steps: Sequence[float], plain: Sequence[float]) -> Kept:
        mean = statistics.fmean(plain)
        delay = sum(steps) - len(steps) * mean
        return cls(
            writing_seconds=writing_seconds,
            size_bytes=size_bytes,
            plain_seconds=mean,
            step_seconds=list(steps),
            pause_seconds=max(steps[:2]) - mean,
            delay_seconds=delay,
            delay_share=delay / writing_seconds,
        )


class SnapshotRow(Row, frozen=True, kw_only=True):
    """Training beside snapshots. seconds: of plain steps. first: the snapshot that is not counted.

    writing_seconds, pause_seconds, delay_seconds, delay_share: medians of those that are. share_max: what is allowed.
    """

    first: Kept
    snapshots: list[Kept]
    writing_seconds: float
    pause_seconds: float
    delay_seconds: float
    delay_share: float
    plain_step_seconds: list[float]
    share_max: float = SHARE_MAX


def snapshot(plan: Plan, show: Show) -> SnapshotRow:
    """Measure.

    Raises JobError, StartupError or DeadlineError when a process fails, SnapshotError when nothing can be written.
    """
    plan.check()
    names = [worker_name(SHOAL, rank) for rank in range(plan.workers)]
    turns = 2 + 2 * (1 + plan.snapshots)
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=plan.folder) as folder,
        Fleet("bench-snapshot", plan.workers, plan.servers) as fleet,
        Conductor(Path(folder, "control"), fleet.check, fleet.why) as conductor,
    ):
        show("starting processes", 0, turns)
        _start(plan, names, fleet, Path(folder))
        conductor.gather(names, READY_SECONDS)

        def turn(what: str, done: int, shot: Shot) -> Taken:
            show(what, done, turns)
            answers = conductor.ask(dict.fromkeys(names, shot), Taken, ORDER_SECONDS, what)
            steps = zip(*(answer.seconds for answer in answers.values()), strict=True)
            return Taken(tuple(max(each) for each in steps), answers[names[0]].began)

        turn("warms up", 1, Shot(plan.warmup))
        plain = [turn("plain steps", 2, Shot(plan.steps)).seconds]
        found = []
        for number in range(1 + plan.snapshots):
            path = Path(folder, f"snapshot-{number}")
            what = f"snapshot {number} of {plan.snapshots}" if number else "a first snapshot"
            taken = turn(what, 3 + 2 * number, Shot(0, str(path), str(Path(folder, f"last-{number}"))))
            plain.append(turn("plain steps", 4 + 2 * number, Shot(plan.steps)).seconds)
            manifest = read(place(path))
            around = (*plain[-2], *plain[-1])
            found.append(Kept.of(manifest.written - taken.began, manifest.size_bytes, taken.seconds, around))
    return _row(plan, found, [second for seconds in plain for second in seconds])


def _start(plan: Plan, names: Sequence[str], fleet: Fleet, folder: Path) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // plan.workers)
    facts = {
        "OMP_NUM_THREADS": str(threads),
        "SHOAL_TRANSPORT": plan.transport,
        "SHOAL_COORDINATOR": fleet.start_job(SHOAL_TRANSPORT=plan.transport),
    }
    for rank, name in enumerate(names):
        keeper = Keeper(rank=rank, params=plan.params, optimizer=plan.optimizer, control=str(folder / "control"))
        fleet.start(name, (*PROGRAM, msgspec.json.encode(keeper).decode()), (), SHOAL_RANK=rank, **facts)


def _row(plan: Plan, found: list[Kept], plain: list[float]) -> SnapshotRow:
    first, *counted = found
    return SnapshotRow(
        bench="snapshot",
        params=elements(gpt_shapes(plan.params)),
        workers=plan.workers,
        servers=plan.servers,
        transport=plan.transport,
        policy="Sync()",
        optimizer=plan.optimizer,
        peer=None,
        seconds=Seconds.of(plain),
        ratio=None,
        floor_share=None,
        first=first,
        snapshots=counted,
        writing_seconds=statistics.median(item.writing_seconds for item in counted),
        pause_seconds=statistics.median(item.pause_seconds for item in counted),
        delay_seconds=statistics.median(item.delay_seconds for item in counted),
        delay_share=statistics.median(item.delay_share for item in counted),
        plain_step_seconds=plain,
    )
