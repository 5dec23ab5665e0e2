"""What one slow worker costs, policy by policy.

A sleep per sample stands in for compute, so that many workers fit few cores; one worker sleeps `slow`
times as long. Each worker's own speed is measured first, by itself: the same loop and model without any
exchange. Then all of them train together under each policy in turn, in the same processes, through
ps.optimizer and ps.loader. Counted are the samples of contributions that were committed, over a window
that begins `warmup` seconds after the job has started: a worker's rate is its committed samples over the
time from its first to its last step in the window.

Two bars are shown: Bounded and Async should keep 90% of the sum of the workers' own speeds, a quorum of
three of four 90% of the speed of the three that are not slowed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.orders import Done, Log, Pace, Trial
from shoal.bench.rows import Row, Seconds
from shoal.errors import ConfigurationError, JobError, ShoalError
from shoal.policy import Async, Bounded, Policy, Sync
from shoal.runtime import visitor

LAYERS = (32, 64, 16)  # widths of the model
DATASET_SAMPLES = 1 << 20  # more than any trial can use
BAR = 0.9
SLOW_RANK = -1  # the last one
READY_SECONDS = 120.0
SLACK_SECONDS = 60.0  # for a trial to begin and end
STATUS_DEADLINE_MS = 2_000

ALL, UNSLOWED = "all", "unslowed"  # whose own speeds a bar is measured by

Show = Callable[[str, int, int], None]  # what is under way, trials done, trials in all


@dataclass(frozen=True)
class Case:
    """One policy. balance: what ps.loader is given. bar: whose speed it should keep 90% of, if any."""

    name: str
    policy: Policy
    balance: bool | None = None
    bar: str = ""


CASES = (
    Case("Sync()", Sync()),
    Case("Sync(quorum=0.75)", Sync(quorum=0.75), bar=UNSLOWED),
    Case("Bounded(4)", Bounded(4), bar=ALL),
    Case("Bounded(4), fixed batch", Bounded(4), balance=False),
    Case("Async()", Async(), bar=ALL),
)


@dataclass(frozen=True)
class Plan:
    """What to measure. slow: how many times slower the last worker is. sample_ms: of the others."""

    workers: int = 4
    servers: int = 1
    slow: float = 3.0
    batch: int = 32
    sample_ms: float = 2.0
    seconds: float = 6.0
    warmup: float = 2.0
    alone: float = 2.0  # seconds in which a worker's own speed is measured

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name, least in (("workers", 2), ("servers", 1), ("batch", 1), ("slow", 1.0)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least {least}")
        for name in ("sample_ms", "seconds", "warmup", "alone"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"--{name.replace('_', '-')} {getattr(self, name)} must be above 0")
        longest = 3 * self.slow * self.batch * self.sample_ms / 1000
        if min(self.alone, self.seconds) < longest:
            raise ConfigurationError(
                f"--seconds {self.seconds:g} and --alone {self.alone:g} hold fewer than three steps of the slowed "
                f"worker: give at least {longest:g}, or a smaller --batch or --sample-ms"
            )

    def sample_seconds(self, rank: int) -> float:
        slowed = rank == self.workers + SLOW_RANK
        return self.sample_ms / 1000 * (self.slow if slowed else 1.0)


class StragglerRow(Row, frozen=True, kw_only=True):
    """One policy. seconds: of one step of any worker. Speeds are samples per second, by worker.

    share_of_all: committed samples/s over the sum of the workers' own speeds; share_of_unslowed: over
    that of the workers that are not slowed. staleness: commits since the version that a worker computes
    on, as `shoal status` shows it, looked at ten times a second. dropped: contributions that came too
    late for their commit. bar_met: None where no bar is set.
    """

    slow: float
    batch: int
    samples_per_second: float
    speeds: list[float]
    own_speeds: list[float]
    share_of_all: float
    share_of_unslowed: float
    staleness_mean: float
    staleness_max: int
    contributions: int
    dropped: int
    bar_met: bool | None


@dataclass
class Watch:
    """Looks at a job's staleness while it runs."""

    address: str
    job: str
    token: str
    seen: list[int] = field(default_factory=list)

    def look(self) -> None:
        try:
            status = visitor.status(self.address, self.job, self.token, STATUS_DEADLINE_MS)
        except ShoalError:
            return  # not running yet, or ending: the next look will tell, or the workers' answers
        self.seen += [member.staleness for member in status.members if member.name.startswith("worker/")]


def worker_name(rank: int) -> str:
    """What a worker is called in errors."""
    return f"worker {rank}"


def straggler(plan: Plan, show: Show, cases: Sequence[Case] = CASES) -> list[StragglerRow]:
    """One row per case. Raises JobError, StartupError or DeadlineError when a process fails."""
    plan.check()
    ranks = range(plan.workers)
    trials = 1 + plan.workers + len(cases)
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder,
        Fleet("bench-straggler", plan.workers, plan.servers) as fleet,
        Conductor(Path(folder, "control"), fleet.check, fleet.why) as conductor,
    ):
        show("starting processes", 0, trials)
        for rank in ranks:
            control = str(Path(folder, "control"))
            pace = Pace(rank=rank, control=control, sample_seconds=plan.sample_seconds(rank), batch=plan.batch)
            arguments = ("-m", "shoal.bench.straggler_worker", msgspec.json.encode(pace).decode())
            fleet.start(worker_name(rank), arguments, OMP_NUM_THREADS=1)
        conductor.gather([worker_name(rank) for rank in ranks], READY_SECONDS)
        own: list[float] = []
        for rank in ranks:
            show(f"{worker_name(rank)} alone", 1 + rank, trials)
            own.append(_alone(plan, rank, conductor))
        rows: list[StragglerRow] = []
        for number, case in enumerate(cases):
            show(case.name, 1 + plan.workers + number, trials)
            rows.append(_trial(plan, case, own, fleet, conductor))
        show("done", trials, trials)
    return rows


def _alone(plan: Plan, rank: int, conductor: Conductor) -> float:
    name = worker_name(rank)
    order = {name: Trial(seconds=plan.alone)}
    log = conductor.ask(order, Log, plan.alone + SLACK_SECONDS, "its run alone")[name]
    return rate(log.steps, 0.0, math.inf)


def _trial(plan: Plan, case: Case, own: Sequence[float], fleet: Fleet, conductor: Conductor) -> StragglerRow:
    suffix = f" of {case.name}"
    address = fleet.start_job(suffix)
    seconds = plan.warmup + plan.seconds
    trial = Trial(seconds=seconds, coordinator=address, policy=case.policy.spec, balance=case.balance)
    watch = Watch(address, fleet.plan.job, fleet.plan.token)
    names = [worker_name(rank) for rank in range(plan.workers)]
    logs = conductor.ask(dict.fromkeys(names, trial), Log, seconds + SLACK_SECONDS, case.name, watch.look)
    fleet.end_job(suffix)
    return _row(plan, case, own, [log.steps for log in logs.values()], watch.seen)


def rate(steps: Sequence[Done], begin: float, end: float) -> float:
    """Committed samples per second between the first and the last step within begin..end (JobError without two)."""
    inside = [step for step in steps if begin <= step.at <= end]
    if len(inside) < 2:
        raise JobError(f"a worker took {len(inside)} steps in the measured window: give more --seconds")
    committed = sum(step.samples for step in inside[1:] if step.committed)
    return committed / (inside[-1].at - inside[0].at)


def _row(
    plan: Plan, case: Case, own: Sequence[float], logs: Sequence[Sequence[Done]], staleness: Sequence[int]
) -> StragglerRow:
    end = plan.warmup + plan.seconds
    speeds = [rate(steps, plan.warmup, end) for steps in logs]
    total = sum(speeds)
    unslowed = sum(own) - own[SLOW_RANK]
    shares = {ALL: total / sum(own), UNSLOWED: total / unslowed}
    counted = [step for steps in logs for step in steps if plan.warmup <= step.at <= end]
    pauses = [after.at - before.at for steps in logs for before, after in zip(steps, steps[1:], strict=False)]
    return StragglerRow(
        bench="straggler",
        params=sum(inputs * outputs + outputs for inputs, outputs in zip(LAYERS, LAYERS[1:], strict=False)),
        workers=plan.workers,
        servers=plan.servers,
        transport="tcp",
        policy=case.name,
        optimizer="adamw",
        peer=None,
        seconds=Seconds.of(pauses),
        ratio=None,
        floor_share=None,
        slow=plan.slow,
        batch=plan.batch,
        samples_per_second=total,
        speeds=speeds,
        own_speeds=list(own),
        share_of_all=shares[ALL],
        share_of_unslowed=shares[UNSLOWED],
        staleness_mean=sum(staleness) / len(staleness) if staleness else 0.0,
        staleness_max=max(staleness, default=0),
        contributions=len(counted),
        dropped=sum(not step.committed for step in counted),
        bar_met=shares[case.bar] >= BAR if case.bar else None,
    )
