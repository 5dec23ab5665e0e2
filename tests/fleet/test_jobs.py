"""Jobs on a fleet of real processes: their own servers, their own bits, and an end for whatever a dead one leaves."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import JobError, StartupError

from ..promises.door import secured
from ..transport.certificates import certificate
from .members import Job, Member, alive, members, on, shoal, wait_until


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[Member]]:
    """Two members of two places each, without jobs before and after each test."""
    with members(2) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_is_left(fleet: list[Member]) -> Iterator[None]:
    yield
    wait_until(lambda: not any(member.places().taken for member in fleet), "all places are free", 20)


def plain() -> dict[str, str]:
    return dict(os.environ)


@pytest.mark.slow
def test_two_jobs_at_once_on_one_fleet_end_with_the_bits_of_each_alone(fleet: list[Member], tmp_path: Path) -> None:
    alone = [Job(clocks, tmp_path / f"alone {clocks}") for clocks in (12, 17)]
    for job in alone:
        job.run(plain())
        assert job.outcome == 0, job.lines
    together = [Job(job.clocks, tmp_path / f"together {job.clocks}", 0.05) for job in alone]
    threads = [job.start(on(fleet)) for job in together]
    wait_until(lambda: [member.places().taken for member in fleet] == [2, 2], "both jobs have a server on each member")
    for thread in threads:
        thread.join()
    for job, other in zip(together, alone, strict=True):
        assert job.outcome == 0, job.lines
        assert job.results() == other.results()
        where = [text for source, text in job.lines if source.startswith("server") and "runs on" in text]
        assert len(set(re.findall(r"127\.0\.0\.1:\d+", " ".join(where)))) == 2
    assert together[0].results() != together[1].results()


@pytest.mark.slow
def test_when_a_launcher_is_killed_its_servers_are_gone_and_the_other_job_goes_on(
    fleet: list[Member], tmp_path: Path
) -> None:
    other, doomed = Job(60, tmp_path / "other", 0.1), Job(100_000, tmp_path / "doomed", 0.05, name="doomed")
    thread = other.start(on(fleet))
    wait_until(lambda: other.version > 3 or other.outcome is not None, "the other job trains")
    chosen = on(fleet)
    facts = {name: chosen[name] for name in ("SHOAL_FLEET", "SHOAL_FLEET_TOKEN")}
    with shoal("run", "--servers", 2, *doomed.command, SHOAL_JOB="doomed", **facts) as launcher:
        wait_until(lambda: launcher.found(r"\[worker 0\] clock 5"), "the job that will be killed trains")
        loans = [loan for member in fleet for loan in member.places().loans if loan.job == "doomed"]
        pids = [pid for loan in loans for _, pid in loan.processes]
        assert len(pids) == 2 and all(map(alive, pids))
        os.kill(launcher.popen.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), "the servers of a killed launcher are gone", 10)
    assert all(any("is gone; what it borrowed ends" in line for line in member.process.lines) for member in fleet)
    thread.join()
    assert other.outcome == 0, other.lines
    same = Job(60, tmp_path / "same")
    same.run(plain())
    assert other.results() == same.results()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"its fleet member 127\.0\.0\.1:\d+ is gone: its connection broke"),
        (signal.SIGTERM, r"its fleet member 127\.0\.0\.1:\d+ is gone: it was told to end"),
    ],
)
def test_a_job_is_told_which_member_died_and_the_member_s_servers_die_with_it(
    number: signal.Signals, words: str, tmp_path: Path
) -> None:
    with members(2, places=1) as fleet:
        job = Job(100_000, tmp_path / "job", 0.05)
        thread = job.start(on(fleet))
        wait_until(lambda: job.version > 3 or job.outcome is not None, "the job trains")
        (pid,) = fleet[1].pids()
        os.kill(fleet[1].pid, number)
        thread.join()
        assert isinstance(job.outcome, JobError), job.lines
        assert re.search(rf"server 1 \(pid {pid}\) was killed by SIGKILL: {words}", str(job.outcome))
        assert fleet[1].address.removeprefix("tcp://") in str(job.outcome)
        assert fleet[1].process.wait() == (0 if number is signal.SIGTERM else -number)
        wait_until(lambda: not alive(pid), "the server of a member that ended is gone", 10)


def test_places_are_limited(fleet: list[Member], tmp_path: Path) -> None:
    job = Job(5, tmp_path / "job", servers=5)
    job.run(on(fleet))
    assert isinstance(job.outcome, StartupError)
    assert "no member of the fleet lends a place for server 4" in str(job.outcome)
    assert str(job.outcome).count("its places are taken, all 2 of them (--places), by 1 jobs") == 2
    assert "--servers" in str(job.outcome)


def test_the_status_names_jobs_to_those_who_have_the_token(fleet: list[Member], tmp_path: Path) -> None:
    address = on(fleet)["SHOAL_FLEET"]
    job = Job(25, tmp_path / "job", 0.1, name="the-job")
    thread = job.start(on(fleet))
    wait_until(lambda: all(member.places().taken for member in fleet), "the job has its servers")
    with shoal("fleet", "status", address) as shown, shoal("fleet", "status", address, SHOAL_FLEET_TOKEN="x") as denied:
        assert shown.wait() == 0
        assert denied.wait() == 2
    assert len([line for line in shown.lines if "1 of 2 places are taken" in line]) == 2
    assert shown.found(r"the-job +\S+ +\d+ s +server 0 \(pid \d+\)")
    assert denied.found("shoal: error: the fleet member at .* refused: the token does not match that of the fleet")
    assert not denied.found("the-job")
    thread.join()
    assert job.outcome == 0, job.lines


@pytest.mark.slow
def test_over_tls_servers_show_the_member_s_certificate(tmp_path: Path) -> None:
    tls = secured().environment()
    job = Job(3, tmp_path / "job")
    with members(1, **tls) as fleet:
        job.run({**on(fleet), **certificate().environment(), "SHOAL_TRANSPORT": "tcp"})
    assert job.outcome == 0, job.lines


def test_a_member_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    job = Job(5, tmp_path / "job")
    job.run({**plain(), "SHOAL_FLEET": "127.0.0.1:1", "SHOAL_CONNECT_MS": "300"})
    assert isinstance(job.outcome, StartupError)
    assert re.search(r"cannot reach fleet member 127\.0\.0\.1:1: nothing answered", str(job.outcome))
    assert job.lines == []
