"""A server that is lost takes nothing with it: others hold its shard, to the bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest

from shoal.policy import Async, Bounded, Policy
from shoal.runtime.embedded import EmbeddedJob
from shoal.vocabulary import server_name

from .cluster import (
    QUICK,
    Observer,
    Setting,
    assert_exactly_once,
    begin,
    counted,
    counting_table,
    joined,
    promised_table,
    running,
    step,
    to_bytes,
    together,
)

WORKERS, CLOCKS = 3, 12
LIMITS = replace(QUICK, grace_ms=100)
PLACES = {
    "tcp": Setting(servers=2, replicas=2, scheme="tcp"),
    "shared memory": Setting(servers=2, replicas=2, scheme="shm"),
    "inproc": Setting(servers=2, replicas=2),
}


@dataclass
class Happenings:
    """What is to be done when a worker comes to a clock, once each."""

    embedded: EmbeddedJob
    planned: dict[int, Sequence[Callable[[EmbeddedJob], None]]]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, clock: int) -> None:
        with self.lock:
            for happen in self.planned.pop(clock, ()):
                happen(self.embedded)


def lose(server: int) -> Callable[[EmbeddedJob], None]:
    """The server is gone, without a word."""
    return lambda embedded: embedded.lose(server)


def add(embedded: EmbeddedJob) -> None:
    """Another server comes, and is waited for until it has all of its shard."""
    index = embedded.add()
    until = time.monotonic() + 20
    while f"{server_name(index)} backs" not in parts(embedded):
        assert time.monotonic() < until, parts(embedded)
        time.sleep(0.02)


def parts(embedded: EmbeddedJob) -> str:
    return ", ".join(f"{member.name} {member.state}" for member in embedded.status().members)


def train(setting: Setting, planned: dict[int, Sequence[Callable[[EmbeddedJob], None]]]) -> bytes:
    spec = promised_table()
    with running(WORKERS, setting, LIMITS) as embedded:
        happenings = Happenings(embedded, dict(planned))

        def work(rank: int) -> bytes:
            with joined(embedded, rank, setting) as worker:
                values = begin(worker, spec)
                while worker.clock <= CLOCKS:
                    if rank == worker.clock % WORKERS:
                        happenings.at(worker.clock)
                    step(worker, spec)
                return to_bytes(values)

        results = together(*(lambda rank=rank: work(rank) for rank in range(WORKERS)))
    assert not happenings.planned
    assert len(set(results)) == 1, "workers disagree on the parameters"
    return results[0]


@cache
def calm() -> bytes:
    return train(Setting(), {})


@pytest.mark.parametrize(
    ("place", "server"),
    [
        *(("shared memory", server) for server in range(4)),
        ("tcp", 0),
        *(pytest.param(place, server, marks=pytest.mark.slow) for place in ("tcp", "inproc") for server in (1, 2, 3)),
    ],
)
def test_the_loss_of_any_server_does_not_show_in_the_parameters(server: int, place: str) -> None:
    assert train(PLACES[place], {4: [lose(server)]}) == calm()


@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_comes_later_can_take_over_from_all_that_were_there(place: str) -> None:
    planned = {3: [lose(0)], 5: [add], 7: [lose(2)], 8: [add], 10: [lose(4)]}
    assert train(PLACES[place], planned) == calm()


@pytest.mark.parametrize("policy", [Bounded(2), Async()], ids=["bounded", "async"])
def test_without_lockstep_no_sample_is_lost_or_counted_twice(policy: Policy) -> None:
    size = 180
    spec, observer = counting_table(f"{policy.spec.kind}:2" if policy.spec.staleness else "async", size), Observer()
    setting = PLACES["shared memory"]
    with running(WORKERS, setting, LIMITS, observer) as embedded:
        happenings = Happenings(embedded, {4: [lose(0)], 8: [lose(3)]})

        def work(rank: int) -> bytes:
            with joined(embedded, rank, setting) as worker:
                seen = np.zeros(size, np.float32)
                begin(worker, spec, [seen])
                while (lease := worker.lease(counted(size), 0)) is not None:
                    happenings.at(worker.clock)
                    gradient = np.zeros(size, np.float32)
                    for start, stop in lease.spans:
                        gradient[start:stop] -= 1
                    worker.push(0, gradient.view(np.uint8))
                    worker.step([1.0])
                return seen.tobytes()

        seen = together(*(lambda rank=rank: work(rank) for rank in range(WORKERS)))
    assert_exactly_once(observer.updates, size, 1)
    assert set(seen) == {np.ones(size, np.float32).tobytes()}
