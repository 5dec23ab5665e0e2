"""A job whose registry is an etcd of three members: its training outlives etcd's leader, and then its own coordinator."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal.config import Limits
from shoal.launch.local import launch
from shoal.wire.messages import Status

from .members import Members, needs_etcd

SCRIPT = """
import sys, time
import torch
import shoal

torch.manual_seed(0)
torch.set_num_threads(1)
with shoal.connect() as ps:
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Tanh(), torch.nn.Linear(30, 7))
    opt = ps.optimizer(model, shoal.AdamW(lr=1e-2, clip_norm=1.0), sync=shoal.Sync())
    while opt.clock <= int(sys.argv[1]):
        x = torch.randn(8, 40, generator=torch.Generator().manual_seed(1000 * opt.clock + ps.rank))
        model(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
        time.sleep(0.01)
    print("bits", b"".join(p.detach().numpy().tobytes() for p in model.parameters()).hex())
"""

LIMITS = Limits(resend_ms=200, lease_ms=9_000, heartbeat_ms=200)  # a third of it is the coordinator's lease

Plan = list[tuple[int, Callable[[Status], None]]]


@dataclass
class Watched:
    """A run, and what is to happen to it once it has reached some version."""

    plan: Plan = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)  # (epoch, version), as they were seen

    def status(self, status: Status) -> None:
        self.versions.append((status.epoch, status.version))
        while self.plan and status.version >= self.plan[0][0]:
            self.plan.pop(0)[1](status)

    def bits(self) -> set[str]:
        return {text for source, text in self.lines if source.startswith("worker") and text.startswith("bits")}


def run(folder: Path, clocks: int, plan: Plan, registry: str = "") -> Watched:
    path = folder / "script.py"
    path.write_text(SCRIPT)
    watched = Watched(plan)
    status = launch(
        (str(path), str(clocks)),
        2,
        1,
        limits=LIMITS,
        registry=registry,
        on_line=lambda source, text: watched.lines.append((source, text)),
        on_status=watched.status,
    )
    assert status == 0, watched.lines
    assert not watched.plan, f"the job was over too soon: {watched.lines}"
    return watched


def kill_coordinator(status: Status) -> None:
    (pid,) = (member.pid for member in status.members if member.name == "coordinator")
    os.kill(pid, signal.SIGKILL)


def taken_over(watched: Watched) -> list[int]:
    """The epochs of coordinators that went on with both workers."""
    found = [re.search(r"epoch (\d+) goes on at version \d+, with 2 workers", text) for _, text in watched.lines]
    return [int(match[1]) for match in found if match]


def test_training_outlives_etcds_leader_and_then_its_own_coordinator(tmp_path: Path) -> None:
    needs_etcd()
    clocks = 300
    calm = run(tmp_path, clocks, [])
    with Members(tmp_path) as members:
        members.leader()

        def kill_etcds_leader(_: Status) -> None:
            members.leader().send(signal.SIGKILL)

        killed = run(tmp_path, clocks, [(10, kill_etcds_leader), (60, kill_coordinator)], members.url)
    first = {epoch for epoch, version in killed.versions if version < 60}
    assert len(first) == 1, "etcd's own election cost the coordinator nothing"
    assert len(taken_over(killed)) == 1 and taken_over(killed)[0] > max(first), killed.lines
    assert len(calm.bits() | killed.bits()) == 1


@pytest.mark.slow
def test_training_outlives_coordinator_after_coordinator_while_etcds_members_come_and_go(tmp_path: Path) -> None:
    needs_etcd()
    clocks = 1_200
    calm = run(tmp_path, clocks, [])
    with Members(tmp_path) as members:
        dead = []

        def kill_etcds_leader(_: Status) -> None:
            dead.append(members.leader())
            dead[-1].send(signal.SIGKILL)

        def revive(_: Status) -> None:
            members.start(dead[-1])

        members.leader()
        plan: Plan = [(20, kill_etcds_leader), (100, kill_coordinator), (300, revive)]
        plan += [(400, kill_etcds_leader), (500, kill_coordinator), (700, revive), (800, kill_coordinator)]
        killed = run(tmp_path, clocks, plan, members.url)
    assert len(taken_over(killed)) == 3 and taken_over(killed) == sorted(set(taken_over(killed))), killed.lines
    assert len(calm.bits() | killed.bits()) == 1


def test_on_one_machine_a_directory_is_enough_and_a_coordinator_that_hangs_is_replaced(tmp_path: Path) -> None:
    def stop_coordinator(status: Status) -> None:
        (pid,) = (member.pid for member in status.members if member.name == "coordinator")
        os.kill(pid, signal.SIGSTOP)

    (tmp_path / "registry").mkdir(mode=0o700)
    calm = run(tmp_path, 120, [])
    killed = run(tmp_path, 120, [(20, stop_coordinator)], f"file://{tmp_path / 'registry'}")
    assert taken_over(killed) == [2], killed.lines
    assert len(calm.bits() | killed.bits()) == 1
