"""Workers come and go at any clock: who joins receives the parameters and starts there, who leaves holds up nobody."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shoal.policy import Async, Bounded, Policy, Sync

from .cluster import (
    QUICK,
    Arrays,
    Observer,
    Setting,
    assert_exactly_once,
    begin,
    contributors,
    counted,
    counting_table,
    join,
    joined,
    promised_table,
    running,
    step,
    table,
    to_bytes,
    together,
)
from .processes import crew, wait_until
from .test_same_bits import RULES

SIZE = 60


@pytest.mark.parametrize("clock", [1, 2, 5])
def test_a_worker_joins_at_any_clock_with_the_parameters_of_the_others(clock: int) -> None:
    spec, observer = promised_table(), Observer()
    with running(1, Setting(servers=2), observer=observer) as embedded, joined(embedded, 0) as first:
        values = begin(first, spec)
        while first.clock < clock:
            step(first, spec)
        with joined(embedded, 1) as second:
            received = begin(second, spec)
            assert second.clock == clock
            assert to_bytes(received) == to_bytes(values)
            for _ in range(2):
                together(lambda: step(first, spec), lambda: step(second, spec))
            assert to_bytes(received) == to_bytes(values)
    assert contributors(observer.updates)[clock] == (0, 1)


@pytest.mark.parametrize("policy", [Sync(), Bounded(0), Bounded(2), Async()], ids=repr)
def test_nobody_waits_for_a_worker_that_left(policy: Policy) -> None:
    spec = table(RULES["sgd"], policy)
    with running(3, Setting(servers=2)) as embedded:
        workers = [join(embedded, rank) for rank in range(3)]
        together(*(lambda worker=worker: begin(worker, spec) for worker in workers))
        together(*(lambda worker=worker: step(worker, spec) for worker in workers))
        workers[1].close()
        others = [workers[0], workers[2]]
        for _ in range(4):
            together(*(lambda worker=worker: step(worker, spec) for worker in others))
        assert [worker.clock for worker in others] == [6, 6]
        for worker in others:
            worker.close()


def test_workers_that_ask_for_any_rank_get_different_ones() -> None:
    spec = promised_table()
    with running(2, Setting(scheme="tcp")) as embedded:

        def work() -> tuple[int, bytes]:
            with joined(embedded, -1) as worker:
                values = begin(worker, spec, initial=None)
                while worker.clock <= 3:
                    step(worker, spec)
                return worker.rank, to_bytes(values)

        (one, its), (other, others) = together(work, work)
    assert {one, other} == {0, 1}
    assert its == others


@pytest.mark.parametrize("policy", ["sync", "bounded:1", "async"])
def test_samples_of_a_worker_that_left_go_to_the_others(policy: str) -> None:
    spec, observer = counting_table(policy, SIZE), Observer()

    def work(worker_rank: int, leaves_after: int) -> Arrays:
        with joined(embedded, worker_rank) as worker:
            seen = np.zeros(SIZE, np.float32)
            begin(worker, spec, [seen])
            taken = 0
            while (lease := worker.lease(counted(SIZE), 0)) is not None and taken < leaves_after:
                gradient = np.zeros(SIZE, np.float32)
                for start, stop in lease.spans:
                    gradient[start:stop] -= 1
                worker.push(0, gradient.view(np.uint8))
                worker.step([1.0])
                taken += 1
            return [seen]

    with running(3, Setting(servers=2), observer=observer) as embedded:
        seen = together(lambda: work(0, 100), lambda: work(1, 2), lambda: work(2, 100))
    assert_exactly_once(observer.updates, SIZE, 1)
    assert (seen[0][0] == 1).all()
    assert (seen[2][0] == 1).all()


def test_a_worker_that_was_stopped_for_too_long_is_fenced_and_the_others_go_on(tmp_path: Path) -> None:
    limits = replace(QUICK, lease_ms=1500, heartbeat_ms=100, empty_ms=20_000)  # the job must be there to be asked
    observer, meeting = Observer(), tmp_path / "meeting"
    with (
        running(2, Setting(servers=2, scheme="tcp"), limits, observer) as embedded,
        crew(embedded.job, embedded.address) as workers,
    ):
        arguments = ("--policy", "sync", "--size", SIZE, "--results", tmp_path, "--hold", 3, meeting)
        going, stopped = (workers.start(rank, "samples", 1, *arguments) for rank in range(2))
        wait_until(lambda: going.said("clock 3") and stopped.said("clock 3"), "both are at clock 3")
        os.kill(stopped.pid, signal.SIGSTOP)
        meeting.touch()
        assert going.wait() == 0
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.wait() == 1
    assert stopped.said("FencedError: worker 1 (incarnation"), stopped.lines
    assert_exactly_once(observer.updates, SIZE, 1)
    assert (np.frombuffer((tmp_path / "0").read_bytes(), np.float32) == 1).all()
