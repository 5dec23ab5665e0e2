"""SIGKILL of any worker at any moment: the job finishes, and each sample of a data epoch counts once.

Sample i adds 1 to parameter i, so the parameters at the end say how often each sample counted, whatever the
ledger believes; the entries of the commit log must say the same.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from shoal.launch import local
from shoal.wire import messages as m

from .cluster import QUICK, Observer, Setting, assert_exactly_once, running
from .processes import WAIT_SECONDS, WORKER, Crew, crew

WORKERS, SIZE, EPOCHS = 3, 70, 2
LIMITS = replace(QUICK, frame_bytes_target=50, grace_ms=100)
POLICIES = ("sync", "sync:0.67", "bounded:2", "async")


TCP, SHM = Setting(servers=2, scheme="tcp"), Setting(servers=1, scheme="shm")


def moment(chance: Random) -> str:
    """Any moment in the life of a worker of these jobs, in which it sends some fifty frames."""
    sides = ("before", "after")
    return chance.choice(
        [
            f"compute:{chance.randint(1, 8)}",
            f"{chance.choice(sides)}:Stage:{chance.randint(1, 40)}",
            f"{chance.choice(sides)}:Ready:{chance.randint(1, 7)}",
            f"{chance.choice(sides)}:LeaseRequest:1",
            f"{chance.choice(sides)}:Declare:1",
            f"{chance.choice(sides)}:Join:1",
        ]
    )


def assert_counted_once(place: Path) -> None:
    for rank in range(WORKERS):
        counts = np.frombuffer((place / f"{rank}").read_bytes(), np.float32)
        assert (counts == EPOCHS).all(), f"worker {rank} sees samples that counted {np.unique(counts)} times"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("lives", "setting"), [(1, TCP), (3, TCP), (3, SHM)], ids=["1-tcp", "3-tcp", "3-shm"])
def test_each_sample_counts_once(policy: str, lives: int, setting: Setting, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)  # shown when the test fails
    chance, observer = Random(seed), Observer()
    with (
        running(WORKERS, setting, LIMITS, observer) as embedded,
        crew(embedded.job, embedded.address) as workers,
    ):
        deaths = {rank: [moment(chance) for _ in range(lives)] for rank in chance.sample(range(WORKERS), k=2)}
        print("deaths", deaths)
        run_through(workers, policy, deaths, tmp_path)
    assert_exactly_once(observer.updates, SIZE, EPOCHS)
    assert_counted_once(tmp_path)


def run_through(workers: Crew, policy: str, deaths: dict[int, list[str]], place: Path) -> None:
    """Start every worker, and again whenever it is killed, until each has ended well."""

    def life(rank: int) -> None:
        die = ("--die", deaths[rank].pop(0)) if deaths.get(rank) else ()
        arguments = ("--policy", policy, "--size", SIZE, "--results", place, "--pause", 0.01, *die)
        workers.start(rank, "samples", EPOCHS, *arguments)

    for rank in range(WORKERS):
        life(rank)
    alive = list(workers.processes)
    until = time.monotonic() + WAIT_SECONDS
    while alive:
        assert time.monotonic() < until, f"workers {[process.rank for process in alive]} hang"
        for process in [process for process in alive if process.popen.poll() is not None]:
            assert process.wait() in (0, -signal.SIGKILL)
            alive.remove(process)
            if process.wait():
                life(process.rank)
                alive.append(workers.processes[-1])
        time.sleep(0.01)


@pytest.mark.parametrize("policy", ["sync", "async"])
def test_the_launcher_starts_killed_workers_again(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with every process of the job a real one."""
    deaths, results, record = tmp_path / "deaths", tmp_path / "results", tmp_path / "log.json"
    for folder in (deaths, results):
        folder.mkdir()
    (deaths / "0").write_text("after:Stage:30")
    (deaths / "2").write_text("compute:3")
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.setattr("shoal.launch.crew.COORDINATOR_PROGRAM", (str(WORKER.with_name("recording_coordinator.py")),))
    lines: list[str] = []
    options = ("--policy", policy, "--size", str(SIZE), "--pause", "0.05", "--deaths", str(deaths))
    status = local.launch(
        (str(WORKER), "samples", str(EPOCHS), *options, "--results", str(results)),
        WORKERS,
        2,
        max_restarts=2,
        on_line=lambda source, text: lines.append(f"{source}: {text}"),
        limits=LIMITS,
    )
    print(*lines, sep="\n")
    assert status == 0
    assert sum("SIGKILL; started again" in line for line in lines) == 2
    commits = [msgspec.json.decode(line, type=m.Commit) for line in record.read_bytes().splitlines()]
    assert_exactly_once([commit for commit in commits if commit.kind == "update"], SIZE, EPOCHS)
    assert_counted_once(results)
