"""Whole jobs for the tests of the promises: workers are threads of this process, the commit log is observed.

Gradients are pure functions of (worker, clock), so two jobs with the same contributors at each clock must end
with the same bytes.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from shoal.config import TRANSPORTS, Job, Limits
from shoal.optim import SGD, AdamW, Rule
from shoal.policy import Policy, Sync
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.worker import Worker
from shoal.transport.base import Connection, Wrap, Wrapped, unwrapped
from shoal.transport.faulty import Faults, faulty
from shoal.vocabulary import Contributor, Dataset, PolicySpec, TableSpec, TensorSpec
from shoal.wire import messages as m
from shoal.wire.framing import Buffer

Arrays = list[npt.NDArray[np.generic]]
T = TypeVar("T")

# Quick enough that lost frames cost little, patient enough for a machine that is busy with other things.
QUICK = Limits(
    resend_ms=50, tick_ms=10, heartbeat_ms=200, lease_ms=20_000, start_ms=20_000, connect_ms=10_000, wait_ms=40_000
)
BAD_NETWORK = Faults(drop=0.04, duplicate=0.1, delay=0.2, reorder=0.1, delay_ms_max=8)
SLOW_NETWORK = Faults(delay=0.5, delay_ms_max=5)

NUMPY = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SHAPES = (((37, 11), "float32"), ((5,), "float32"), ((64, 3), "bfloat16"), ((), "float32"), ((130,), "float32"))
PAGED = (((70, 90), "float32"), ((5,), "float32"), ((64, 96), "bfloat16"), ((), "float32"), ((4500,), "float32"))
PAGED_ELEMENTS = 2048  # blocks of whole pages: several servers can share the memory of one tensor


def table(
    rules: Sequence[Rule],
    policy: Policy | None = None,
    reduction: str = "mean",
    paged: bool = False,
    pushes: Sequence[str] = ("",) * 5,
    pulls: Sequence[str] = ("",) * 5,
) -> TableSpec:
    """Five tensors of two types in a dozen blocks or two: several for each server, many of them partial.

    pushes, pulls: the codecs of their gradients and changes.
    """
    shapes = PAGED if paged else SHAPES
    tensors = tuple(
        TensorSpec(f"t{i}", shape, dtype, i % len(rules), push, pull)
        for i, ((shape, dtype), push, pull) in enumerate(zip(shapes, pushes, pulls, strict=True))
    )
    return TableSpec(
        tensors,
        rules[0].name,
        tuple(rule.settings for rule in rules),
        (policy or Sync()).spec,
        rules[0].clip_norm,
        reduction,
        block_elements_max=PAGED_ELEMENTS if paged else 50,
    )


def promised_table(packed: bool = False) -> TableSpec:
    """packed: of gradients whose codecs need error feedback."""
    pushes = ("powersgd2", "sign", "topk", "", "randomk") if packed else ("",) * 5
    return table((AdamW(lr=0.1, weight_decay=0.1, clip_norm=2.0),), paged=True, pushes=pushes)


def counting_table(policy: str, size: int) -> TableSpec:
    """One parameter a sample. The sum of gradients of -1, at rate 1, counts."""
    kind, _, number = policy.partition(":")
    setting = {"sync": "quorum", "bounded": "staleness", "async": ""}[kind]
    spec = PolicySpec(kind, **({setting: float(number) if kind == "sync" else int(number)} if number else {}))
    rule = SGD(lr=1.0)
    tensors = (TensorSpec("seen", (size,), "float32", 0),)
    return TableSpec(tensors, rule.name, (rule.settings,), spec, None, "sum", block_elements_max=size // 7)


def counted(size: int) -> Dataset:
    return Dataset(size, batch=4, seed=0)


def arrays(spec: TableSpec, *seed: int) -> Arrays:
    """Normally distributed values of the table's shapes and types, the same for the same seed."""
    random = np.random.default_rng(seed)
    return [
        np.asarray(random.standard_normal(item.shape), np.float32).astype(NUMPY[item.dtype]) for item in spec.tensors
    ]


def flat(values: Arrays) -> list[npt.NDArray[np.uint8]]:
    """The arrays' own memory as bytes."""
    return [value.reshape(-1).view(np.uint8) for value in values]


def to_bytes(values: Arrays) -> bytes:
    return b"".join(value.tobytes() for value in values)


# --- observing ----------------------------------------------------------------------------------


@dataclass
class Observer:
    """A Wrap that notes every entry of the commit log on its way to the servers."""

    inner: Wrap = unwrapped
    commits: dict[int, m.Commit] = field(default_factory=dict)
    foreseen: list[m.Foresee] = field(default_factory=list)
    awaited: set[Contributor] = field(default_factory=set)  # offered before their workers knew that they were staged

    def __call__(self, connection: Connection) -> Connection:
        return Observed(self.inner(connection), self)

    def note(self, message: m.Message) -> None:
        if isinstance(message, m.Foresee):
            self.foreseen.append(message)
        if isinstance(message, m.Await):
            self.awaited.add(message.contributor)
        if isinstance(message, m.Commit):
            assert self.commits.setdefault(message.seq, message) == message, "an entry of the log changed"

    @property
    def log(self) -> list[m.Commit]:
        return [commit for _, commit in sorted(self.commits.items())]

    @property
    def updates(self) -> list[m.Commit]:
        return [commit for commit in self.log if commit.kind == "update"]


class Observed(Wrapped):
    """A Connection whose sender is watched."""

    def __init__(self, inner: Connection, observer: Observer) -> None:
        super().__init__(inner)
        self.observer = observer

    def send(self, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        self.observer.note(message)
        super().send(message, payload, files)


def contributors(commits: Sequence[m.Commit]) -> dict[int, tuple[int, ...]]:
    """Clock -> the workers whose gradients are in its one update (for Sync)."""
    found: dict[int, tuple[int, ...]] = {}
    for commit in commits:
        clocks = {item.contributor.clock for item in commit.contributors}
        assert len(clocks) == 1, f"one clock an update, not {clocks}"
        clock = clocks.pop()
        assert clock not in found, f"two updates of clock {clock}"
        found[clock] = tuple(item.contributor.worker for item in commit.contributors)
    return found


def assert_exactly_once(commits: Sequence[m.Commit], size: int, epochs: int) -> None:
    """Every sample of every data epoch is in exactly one entry, and no contribution in two."""
    counts = np.zeros((epochs, size), int)
    for commit in commits:
        for epoch, start, stop in commit.samples:
            counts[epoch, start:stop] += 1
    assert (counts == 1).all(), f"samples counted {np.unique(counts)} times"
    everyone = [item.contributor for commit in commits for item in commit.contributors]
    lives = [(who.worker, who.incarnation, who.clock) for who in everyone]
    assert len(lives) == len(set(lives)), "a contribution is in two entries"


# --- running ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Where and how a job runs; none of it may show in the result."""

    servers: int = 1
    scheme: str = "inproc"
    faults: Faults | None = None
    seed: int = 0
    long: bool = False  # every link is taken for a long one
    replicas: int = 1
    late_s: float = 0.0  # by which the last worker is behind the others in each clock

    def wrap(self) -> Wrap:
        return faulty(self.faults, self.seed) if self.faults is not None else unwrapped


@contextmanager
def running(
    workers: int, setting: Setting = Setting(), limits: Limits = QUICK, observer: Observer | None = None
) -> Iterator[EmbeddedJob]:
    """A coordinator and servers in this process, ended at the end.

    In a full run hundreds of tests share the process, and a garbage collection of all that they left in memory holds
    every thread for seconds on a busy machine: longer than a short lease, so that workers elsewhere rightly give the
    job up. No process of a real job has such a past; here it is left out of collections while the job runs.
    """
    observer = observer or Observer()
    observer.inner = setting.wrap()
    transport = setting.scheme if setting.scheme in TRANSPORTS else TRANSPORTS[0]
    job = Job("promise", "secret", workers, setting.servers, limits, transport, replicas=setting.replicas)
    gc.freeze()
    try:
        with closing(EmbeddedJob(job, wrap=observer, scheme=setting.scheme)) as embedded:
            yield embedded
    finally:
        gc.unfreeze()


def join(embedded: EmbeddedJob, rank: int, setting: Setting = Setting(), estate: int | None = None) -> Worker:
    """A worker of that job: on its loop, or over tcp or shared memory on a loop of its own."""
    thread = embedded.thread if embedded.address.startswith("inproc") else None
    return Worker(embedded.job, embedded.address, rank, wrap=setting.wrap(), thread=thread, estate=estate)


@contextmanager
def joined(embedded: EmbeddedJob, rank: int, setting: Setting = Setting()) -> Iterator[Worker]:
    worker = join(embedded, rank, setting)
    try:
        yield worker
    finally:
        worker.close()


def begin(worker: Worker, spec: TableSpec, initial: Arrays | None = None) -> Arrays:
    """Set up the table; returns the worker's parameters, as the job has them."""
    values = initial if initial is not None else arrays(spec, 1000 + worker.rank)
    seeds = worker.declare(spec)
    worker.bind(flat(values))
    if seeds:
        worker.seed()
    worker.start()
    return values


def step(worker: Worker, spec: TableSpec, chance: Random | None = None, late_s: float = 0.0) -> None:
    """One clock: gradients, weight and learning rates are functions of (worker, clock) alone."""
    time.sleep(late_s)
    clock, rank = worker.clock, worker.rank
    gradients = flat(arrays(spec, rank, clock))
    order = list(range(len(gradients)))
    if chance is not None:
        chance.shuffle(order)
        time.sleep(chance.uniform(0, 0.004))
    for tensor in order:
        worker.push(tensor, gradients[tensor])
    rates = [0.05 / (1 + group + clock) for group in range(len(spec.groups))]
    worker.step(rates, samples=1 + (rank + clock // 4) % 3)


def together(*work: Callable[[], T], timeout: float = 60.0) -> list[T]:
    """Run these on a thread each; returns their results, or raises the first error."""
    results: list[T | BaseException | None] = [None] * len(work)

    def run(index: int) -> None:
        try:
            results[index] = work[index]()
        except BaseException as error:  # noqa: BLE001 (carried over to the test's own thread)
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(work))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    for result in results:
        if isinstance(result, BaseException):
            raise result
    assert not any(thread.is_alive() for thread in threads), "a worker hangs"
    return results  # type: ignore[return-value]


def train(spec: TableSpec, workers: int, clocks: int, setting: Setting, observer: Observer | None = None) -> bytes:
    """The parameters after `clocks` clocks, which every worker must agree on."""
    limits = replace(QUICK, long_link_us=0) if setting.long else QUICK
    with running(workers, setting, limits, observer) as embedded:

        def work(rank: int) -> bytes:
            chance = Random(f"{setting}/{rank}")
            time.sleep(chance.uniform(0, 0.02))
            with joined(embedded, rank, setting) as worker:
                values = begin(worker, spec)
                while worker.clock <= clocks:
                    step(worker, spec, chance, setting.late_s * (rank == workers - 1))
                return to_bytes(values)

        results = together(*(lambda rank=rank: work(rank) for rank in range(workers)))
    assert len(set(results)) == 1, "workers disagree on the parameters"
    return results[0]
