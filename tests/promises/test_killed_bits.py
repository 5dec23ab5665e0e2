"""A run in which workers are killed equals, to the bit, a run without faults that has the same contributors."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from shoal.launch.estate import Estates
from shoal.runtime.worker import Worker

from .cluster import (
    QUICK,
    Arrays,
    Observer,
    Setting,
    arrays,
    begin,
    contributors,
    join,
    promised_table,
    running,
    step,
    to_bytes,
    together,
)
from .processes import crew, wait_until

WORKERS, CLOCKS, MEETING = 3, 9, 7  # at the clock MEETING everyone waits for the restarted worker
LIMITS = replace(QUICK, frame_bytes_target=400, grace_ms=100)

# (rank, moment of its death), see worker.py. A clock's gradient leaves in seven frames or so.
MOMENTS = {
    "while it computes": [(1, "compute:4")],
    "in the middle of its push": [(1, "after:Stage:17")],
    "before its last word": [(2, "before:Ready:3")],
    "right after its last word": [(2, "after:Ready:3")],
    "in its first clock": [(1, "compute:1")],
    "while it seeds": [(0, "before:Stage:2")],
    "when the seed is staged": [(0, "after:Ready:1")],
    "before it declares": [(1, "before:Declare:1")],
    "two of three": [(0, "before:Ready:4"), (2, "after:Stage:30")],
    "two of three, one with its last word": [(0, "before:Ready:4"), (2, "after:Ready:5")],
}
PUSHES = {"in the middle of its push", "two of three"}  # in shared memory nothing is sent before the last word


@pytest.mark.parametrize(
    ("name", "scheme"),
    [*((name, "shm") for name in MOMENTS if name not in PUSHES), *((name, "tcp") for name in sorted(PUSHES))],
)
def test_killed_run_equals_calm_run(name: str, scheme: str, tmp_path: Path) -> None:
    observed, result = killed_run(MOMENTS[name], tmp_path, scheme)
    by_clock, _ = observed
    trained = [moment for _, moment in MOMENTS[name] if "Declare" not in moment and "seed" not in name]
    missed = [rank for clock in by_clock for rank in range(WORKERS) if rank not in by_clock[clock]]
    if trained:  # a death around the seed may or may not cost its worker a clock: the job begins without it, or waits
        assert missed, "who was killed in training missed a clock"
    assert result == calm_run(*observed)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("while it computes", "tcp"),
        ("in the middle of its push", "tcp"),
        ("before its last word", "shm"),
        ("right after its last word", "shm"),
        ("two of three, one with its last word", "tcp"),
    ],
)
def test_what_codecs_lost_is_found_by_the_next_life(name: str, scheme: str, tmp_path: Path) -> None:
    with closing(Estates()) as estates:
        observed, result = killed_run(MOMENTS[name], tmp_path, scheme, packed=True, estates=estates)
    assert result == calm_run(*observed, packed=True)


def test_without_memory_that_outlives_it_the_next_life_finds_nothing(tmp_path: Path) -> None:
    observed, result = killed_run(MOMENTS["while it computes"], tmp_path, "tcp", packed=True)
    assert result != calm_run(*observed, packed=True), "so the test above can fail"


def test_killed_run_equals_calm_run_at_a_moment_nobody_chose(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)  # shown when the test fails
    chance = Random(seed)
    scheme = chance.choice(["tcp", "shm"])
    kind = chance.choice(["Stage", "Ready"] if scheme == "tcp" else ["Ready"])
    moment = f"{chance.choice(['before', 'after'])}:{kind}:{chance.randint(1, 25 if kind == 'Stage' else 6)}"
    observed, result = killed_run([(chance.randrange(WORKERS), moment)], tmp_path, scheme)
    assert result == calm_run(*observed)


Observed = tuple[dict[int, tuple[int, ...]], int]  # contributors by clock, who seeded


def killed_run(
    deaths: list[tuple[int, str]], place: Path, scheme: str, packed: bool = False, estates: Estates | None = None
) -> tuple[Observed, bytes]:
    """Train with deaths and new lives; returns who contributed to what, and the parameters."""
    observer, meeting = Observer(), place / "meeting"
    moments = dict(deaths)
    with (
        running(WORKERS, Setting(servers=2, scheme=scheme), LIMITS, observer) as embedded,
        crew(embedded.job, embedded.address) as workers,
    ):
        workers.estates = estates

        def life(rank: int, *arguments: object) -> None:
            more = ("--packed", *arguments) if packed else arguments
            workers.start(rank, "clocks", CLOCKS, "--hold", MEETING, meeting, "--results", place, *more)

        for rank in range(WORKERS):
            life(rank, *(("--die", moments[rank]) if rank in moments else ()))
        for process in list(workers.processes):
            if process.rank in moments:
                assert process.wait() == -signal.SIGKILL
                life(process.rank)
        everyone = workers.processes[-len(moments) :] + [p for p in workers.processes if p.rank not in moments]
        wait_until(lambda: all(process.said("clock") for process in everyone), "all workers compute")
        meeting.touch()
        assert [process.wait() for process in everyone] == [0] * WORKERS
    results = {(place / f"{rank}").read_bytes() for rank in range(WORKERS)}
    assert len(results) == 1, "workers disagree on the parameters"
    by_clock = contributors(observer.updates)
    assert sorted(by_clock) == list(range(1, CLOCKS + 1))
    assert by_clock[CLOCKS] == tuple(range(WORKERS)), "the restarted worker takes part again"
    (seed,) = (commit for commit in observer.log if commit.kind == "seed")
    return (by_clock, seed.contributors[0].contributor.worker), results.pop()


def calm_run(by_clock: Mapping[int, tuple[int, ...]], seeder: int, packed: bool = False) -> bytes:
    """Train without faults: workers join and leave politely, so that each clock has these contributors. packed: and
    go on with what their codecs had lost when they left."""
    spec, observer = promised_table(packed), Observer()
    members: dict[int, tuple[Worker, Arrays]] = {}
    with closing(Estates()) as estates, running(len(by_clock[1]), Setting(), LIMITS, observer) as embedded:

        def enter(rank: int) -> None:
            worker = join(embedded, rank, estate=estates.of(rank))
            members[rank] = worker, begin(worker, spec, arrays(spec, 1000 + seeder))

        for clock in sorted(by_clock):
            together(*(lambda rank=rank: enter(rank) for rank in by_clock[clock] if rank not in members))
            for rank in [rank for rank in members if rank not in by_clock[clock]]:
                members.pop(rank)[0].close()
            assert {worker.clock for worker, _ in members.values()} == {clock}
            together(*(lambda worker=worker: step(worker, spec) for worker, _ in members.values()))
        finals = {to_bytes(values) for _, values in members.values()}
        together(*(worker.close for worker, _ in members.values()))
    assert contributors(observer.updates) == dict(by_clock)
    assert len(finals) == 1
    return finals.pop()
