"""SIGKILL of the coordinator of a running job: another takes over, and nothing that counts is lost or done twice."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal.config import Limits
from shoal.launch.local import launch
from shoal.wire.messages import Status

SLOW = pytest.mark.slow
BITS = """
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

SAMPLES = """
import sys, time
import torch
import shoal

SIZE = 240
torch.set_num_threads(1)
with shoal.connect() as ps:
    seen = torch.nn.Parameter(torch.zeros(SIZE))
    kind = {"sync": shoal.Sync(), "bounded": shoal.Bounded(2), "async": shoal.Async()}[sys.argv[1]]
    opt = ps.optimizer([("seen", seen)], shoal.SGD(lr=1.0), sync=kind, reduction="sum")
    data = torch.utils.data.TensorDataset(torch.arange(SIZE))
    for epoch in range(2):
        for (batch,) in ps.loader(data, batch_size=4):
            time.sleep(0.03)
            (-seen[batch]).sum().backward()
            opt.step()
            opt.zero_grad()
    print("seen", sorted(set(seen.tolist())))
"""

LIMITS = Limits(resend_ms=200, lease_ms=8_000, heartbeat_ms=200)


@dataclass
class Killer:
    """Sends SIGKILL to one node after the other, each once the job has reached the version that goes with it."""

    plan: list[tuple[int, str]]
    lines: list[tuple[str, str]] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)

    def status(self, status: Status) -> None:
        pids = {member.name: member.pid for member in status.members}
        while self.plan and status.version >= self.plan[0][0]:
            pid = pids.get(self.plan[0][1])
            if not pid or pid in self.killed:
                return
            os.kill(pid, signal.SIGKILL)
            self.killed.add(pid)
            del self.plan[0]
            time.sleep(0.05)

    def of(self, source: str, word: str) -> list[str]:
        return [text for name, text in self.lines if name == source and text.startswith(word)]


def run(script: str, folder: Path, workers: int, kills: list[tuple[int, str]], *arguments: str) -> Killer:
    path = folder / "script.py"
    path.write_text(script)
    killer = Killer(kills)
    status = launch(
        (str(path), *arguments),
        workers,
        2,
        limits=LIMITS,
        max_restarts=9,
        on_line=lambda source, text: killer.lines.append((source, text)),
        on_status=killer.status,
    )
    assert status == 0, killer.lines
    assert not killer.plan, f"the job was over before its nodes were killed: {killer.lines}"
    return killer


@pytest.mark.slow
def test_a_run_whose_coordinator_was_killed_equals_a_calm_one(tmp_path: Path) -> None:
    calm = run(BITS, tmp_path, 2, [], "150")
    killed = run(BITS, tmp_path, 2, [(20, "coordinator"), (60, "coordinator")], "150")
    taken_over = [re.findall(r"epoch (\d) .* version \d+, with 2 workers", text) for _, text in killed.lines]
    assert [found[0] for found in taken_over if found] == ["2", "3"], killed.lines
    assert len(set(calm.of("worker 0", "bits") + killed.of("worker 0", "bits") + killed.of("worker 1", "bits"))) == 1


@pytest.mark.parametrize("policy", ["sync", pytest.param("async", marks=SLOW), pytest.param("bounded", marks=SLOW)])
def test_each_sample_counts_once_though_coordinator_and_worker_are_killed(policy: str, tmp_path: Path) -> None:
    kills = [(10, "coordinator"), (25, "worker/1"), (40, "coordinator")]
    killed = run(SAMPLES, tmp_path, 2, kills, policy)
    assert killed.of("worker 0", "seen") == ["seen [2.0]"], killed.lines
