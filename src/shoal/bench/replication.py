"""What a second replica adds to an exchange, beside one more pass of the rule over the same parameters.

Two jobs of Shoal are alive at once, one without replicas and one with REPLICAS of each server, and a process that
only passes the rule over as many parameters, as one server of the job without replicas would: from one gradient
in float32, which is what a sum is, with that server's kernels, memory and threads. They take turns, some steps
each, and wait for a line on a socket otherwise; the first step of each turn is not counted (see exchange.py).

On one machine the replicas share its cores and its memory, so what a replica adds is at least its own pass, after
another that combines what workers pushed. Both jobs must come to the same bits, and to what torch's optimizer makes
of the mean gradient: if not, there is no row but an error.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.memory import together
from shoal.bench.orders import SHOAL, Setup, Shard, worker_name
from shoal.bench.rows import Row, Seconds
from shoal.bench.rules import RULES
from shoal.bench.shapes import elements, gpt_shapes
from shoal.bench.sides import Show, Side, parts
from shoal.bench.verdict import TOLERANCE, same
from shoal.config import TRANSPORTS
from shoal.errors import ConfigurationError

REPLICAS = 2
BAR = 1.3  # passes of the rule that replication may add to an exchange
READY_SECONDS = 240.0
PASS = "pass of the rule"
WORKER_PROGRAM = ("-m", "shoal.bench.exchange_worker")
PASS_PROGRAM = ("-m", "shoal.bench.replication_pass")


@dataclass(frozen=True)
class Plan:
    """What to measure. steps: of each side, dealt out over `rounds` turns; warmup: of each before that."""

    params: int
    workers: int = 2
    servers: int = 1
    transport: str = "shm"
    optimizer: str = "adamw"
    steps: int = 20
    warmup: int = 3
    rounds: int = 5

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name, known in (("transport", TRANSPORTS[1:]), ("optimizer", tuple(RULES))):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"--{name} {getattr(self, name)}: known are {', '.join(known)}")
        for name, least in (("workers", 1), ("servers", 1), ("steps", 1), ("warmup", 2), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least {least}")

    @property
    def turns(self) -> int:
        """How often something is shown."""
        return 3 * (self.rounds + 2) + 2


class ReplicationRow(Row, frozen=True, kw_only=True):
    """Row.seconds, step_seconds: of the job with replicas. plain: of the one without. one_pass: of the rule.

    *_seconds: each counted sample in order. added_seconds: the difference of the medians, in passes: added_passes;
    bar_met: whether those are at most `bar`. server_bytes: memory of all server processes after the last step.
    digest: of the parameters that both jobs came to; difference: of the worst parameter from the reference.
    """

    replicas: int
    server_threads: int
    plain_server_threads: int
    step_seconds: list[float]
    plain: Seconds
    plain_step_seconds: list[float]
    one_pass: Seconds
    one_pass_seconds: list[float]
    added_seconds: float
    added_passes: float
    bar: float
    bar_met: bool
    server_bytes: int
    plain_server_bytes: int
    steps_checked: int
    digest: str
    difference: float
    tolerance: float = TOLERANCE


@dataclass
class _Job:
    """One job of Shoal. threads: of each of its servers. pids: of those."""

    side: Side
    threads: int
    pids: list[int] = field(default_factory=list)


def replication(plan: Plan, show: Show) -> ReplicationRow:
    """Measure, and check what came out.

    Raises WrongResultError when a job computed something else, and JobError, StartupError or DeadlineError when
    one of its processes fails.
    """
    plan.check()
    done = 0

    def say(what: str) -> None:
        nonlocal done
        show(what, min(done, plan.turns), plan.turns)
        done += 1

    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="shoal-bench-", ignore_cleanup_errors=True)
        control = Path(stack.enter_context(folder)) / "control"
        fleet = stack.enter_context(Fleet("bench-replication", plan.workers, plan.servers))
        conductor = stack.enter_context(Conductor(control, fleet.check, fleet.why))
        jobs: list[_Job] = []
        for replicas in (1, REPLICAS):
            say(f"starting shoal, {_title(replicas)}")
            jobs.append(_start_job(plan, replicas, fleet, str(control)))
            conductor.gather(jobs[-1].side.workers, READY_SECONDS)
        plain, replicated = jobs
        say(f"starting a {PASS}")
        passing = _start_pass(plan, plain.threads * plan.servers, fleet, str(control))
        conductor.gather(passing.workers, READY_SECONDS)
        sides = [plain.side, replicated.side, passing]
        for side in sides:
            say(f"{side.name} warms up")
            side.turn(plan.warmup, conductor)
        for number, steps in enumerate(parts(plan.steps, plan.rounds), 1):
            for side in sides if steps else ():
                say(f"round {number} of {plan.rounds}: {side.name}")
                side.seconds += side.turn(steps + 1, conductor)[1:]
        held = [together(job.pids).own for job in jobs]
        for job in jobs:
            say(f"checking {job.side.name}")
            job.side.check(conductor)
        same({job.side.name: job.side.digest for job in jobs})
        return _row(plan, plain, replicated, passing, held)


def _title(replicas: int) -> str:
    return f"{replicas} replicas" if replicas > 1 else "no replicas"


def _start_job(plan: Plan, replicas: int, fleet: Fleet, control: str) -> _Job:
    title = f"{SHOAL}, {_title(replicas)}"
    suffix = f" ({_title(replicas)})"
    facts: dict[str, object] = {
        **fleet.replicated(replicas),
        "SHOAL_TRANSPORT": plan.transport,
        "SHOAL_START_MS": round(READY_SECONDS * 1000),  # workers make their gradients before they join the others
    }
    address = fleet.start_job(suffix, (), **facts)
    pids = [fleet.pid(name) for name in fleet.servers(suffix, replicas)]
    for rank in range(plan.workers):
        setup = Setup(
            side=SHOAL,
            title=title,
            rank=rank,
            params=plan.params,
            workers=plan.workers,
            servers=plan.servers,
            transport=plan.transport,
            optimizer=plan.optimizer,
            control=control,
        )
        own = {"OMP_NUM_THREADS": max(1, _cores() // plan.workers), "SHOAL_RANK": rank, "SHOAL_COORDINATOR": address}
        fleet.start(setup.name, (*WORKER_PROGRAM, msgspec.json.encode(setup).decode()), (), **facts, **own)
    workers = [worker_name(title, rank) for rank in range(plan.workers)]
    return _Job(Side(title, workers), int(str(facts["SHOAL_SERVER_THREADS"])), pids)


def _start_pass(plan: Plan, threads: int, fleet: Fleet, control: str) -> Side:
    shard = Shard(
        name=PASS,
        params=plan.params,
        optimizer=plan.optimizer,
        shared=plan.transport == "shm",
        threads=threads,
        control=control,
    )
    fleet.start(PASS, (*PASS_PROGRAM, msgspec.json.encode(shard).decode()), OMP_NUM_THREADS=1)
    return Side(PASS, [PASS])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _row(plan: Plan, plain: _Job, replicated: _Job, passing: Side, held: list[int]) -> ReplicationRow:
    with_replicas, without, one_pass = (
        statistics.median(side.seconds) for side in (replicated.side, plain.side, passing)
    )
    added = with_replicas - without
    return ReplicationRow(
        bench="replication",
        params=elements(gpt_shapes(plan.params)),
        workers=plan.workers,
        servers=plan.servers,
        transport=plan.transport,
        policy="Sync()",
        optimizer=plan.optimizer,
        peer=None,
        seconds=Seconds.of(replicated.side.seconds),
        ratio=None,
        floor_share=None,
        replicas=REPLICAS,
        server_threads=replicated.threads,
        plain_server_threads=plain.threads,
        step_seconds=replicated.side.seconds,
        plain=Seconds.of(plain.side.seconds),
        plain_step_seconds=plain.side.seconds,
        one_pass=Seconds.of(passing.seconds),
        one_pass_seconds=passing.seconds,
        added_seconds=added,
        added_passes=added / one_pass,
        bar=BAR,
        bar_met=added / one_pass <= BAR,
        server_bytes=held[1],
        plain_server_bytes=held[0],
        steps_checked=replicated.side.steps,
        digest=replicated.side.digest,
        difference=max(replicated.side.difference, plain.side.difference),
    )
