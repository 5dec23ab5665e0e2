"""Jobs with a registry: training outlives etcd's own leader, and then its coordinators, to the same bits."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from shoal.config import Limits
from shoal.errors import ConfigurationError
from shoal.launch.local import launch
from shoal.launch.plan import prepared
from shoal.wire.messages import Status

from .members import Member, Members

WORKER = Path(__file__).parent.parent / "promises" / "worker.py"  # trains on numpy: it starts quickly
LIMITS = Limits(resend_ms=200, lease_ms=9_000, heartbeat_ms=200)  # a third of it is the coordinator's lease
LIMITS_ETCD = replace(LIMITS, lease_ms=24_000)  # where others keep the cores busy, etcd's own election takes over 2 s
PAUSE_SECONDS = 0.01  # of each step

Plan = list[tuple[int, Callable[[Status], None]]]  # from this version on, once


@dataclass
class Watched:
    """A run, and what is to happen to it on the way."""

    plan: Plan = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    parameters: set[bytes] = field(default_factory=set)  # at the end, of every worker

    def status(self, status: Status) -> None:
        while self.plan and status.version >= self.plan[0][0]:
            self.plan.pop(0)[1](status)

    @property
    def taken_over(self) -> list[int]:
        """The epochs of coordinators that went on with both workers."""
        found = [re.search(r"epoch (\d+) goes on at version \d+, with 2 workers", text) for _, text in self.lines]
        return [int(match[1]) for match in found if match]


def run(folder: Path, clocks: int, plan: Plan, registry: str = "") -> Watched:
    folder.mkdir()
    watched = Watched(plan)
    command = (str(WORKER), "clocks", str(clocks), "--pause", str(PAUSE_SECONDS), "--results", str(folder))
    status = launch(
        command,
        2,
        1,
        limits=LIMITS_ETCD if registry.startswith("etcd") else LIMITS,
        registry=registry,
        on_line=lambda source, text: watched.lines.append((source, text)),
        on_status=watched.status,
    )
    assert status == 0, watched.lines
    assert not watched.plan, f"the job was over too soon: {watched.lines}"
    watched.parameters = {(folder / f"{rank}").read_bytes() for rank in range(2)}
    return watched


def to_coordinator(number: signal.Signals) -> Callable[[Status], None]:
    def send(status: Status) -> None:
        (pid,) = (member.pid for member in status.members if member.name == "coordinator")
        os.kill(pid, number)

    return send


def test_training_outlives_etcds_leader_and_then_its_own_coordinator(etcd: Members, tmp_path: Path) -> None:
    clocks, dead, epochs = 180, list[Member](), list[int]()

    def kill_etcds_leader(status: Status) -> None:
        epochs.append(status.epoch)
        dead.append(etcd.leader())
        dead[0].send(signal.SIGKILL)

    def kill_coordinator(status: Status) -> None:
        epochs.append(status.epoch)
        to_coordinator(signal.SIGKILL)(status)

    plan: Plan = [(20, kill_etcds_leader), (90, kill_coordinator)]
    killed = run(tmp_path / "killed", clocks, plan, etcd.url)
    etcd.start(dead[0])
    first, before = epochs
    assert first == before, f"etcd's own election cost the job a coordinator: {killed.lines}"
    (second,) = killed.taken_over
    assert second > first
    calm = run(tmp_path / "calm", clocks, [])
    assert len(calm.parameters | killed.parameters) == 1


def test_on_one_machine_a_directory_is_enough_and_a_coordinator_that_hangs_is_replaced(tmp_path: Path) -> None:
    place = f"file://{tmp_path / 'registry'}"
    killed = run(tmp_path / "killed", 120, [(20, to_coordinator(signal.SIGSTOP))], place)
    assert killed.taken_over == [2], killed.lines
    calm = run(tmp_path / "calm", 120, [])
    assert len(calm.parameters | killed.parameters) == 1


@pytest.mark.parametrize(
    ("url", "standbys", "wrong"),
    [
        ("consul://here", 1, "must start with file://"),
        ("file://here/registry", 1, "names no directory"),
        ("", 2, "0 without --registry"),
    ],
)
def test_a_registry_that_cannot_be_is_refused_before_anything_starts(url: str, standbys: int, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        prepared(("-m", "x"), 1, 1, registry=url, standbys=standbys)


@pytest.mark.slow
def test_coordinators_and_etcds_members_come_and_go(tmp_path: Path, etcd: Members) -> None:
    clocks, dead = 1_500, list[Member]()

    def kill_etcds_leader(_: Status) -> None:
        dead.append(etcd.leader())
        dead[-1].send(signal.SIGKILL)

    def revive(_: Status) -> None:
        etcd.start(dead[-1])

    kill = to_coordinator(signal.SIGKILL)
    plan: Plan = [(20, kill_etcds_leader), (150, kill), (400, revive), (500, kill_etcds_leader), (600, kill)]
    plan += [(900, revive), (1_000, to_coordinator(signal.SIGSTOP))]
    killed = run(tmp_path / "killed", clocks, plan, etcd.url)
    assert len(killed.taken_over) == 3 and killed.taken_over == sorted(set(killed.taken_over)), killed.lines
    calm = run(tmp_path / "calm", clocks, [])
    assert len(calm.parameters | killed.parameters) == 1
