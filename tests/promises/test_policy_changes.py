"""The policy of a job changes while it trains: no worker sees a torn version, nothing is lost, and it outlives the
coordinator."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from shoal.adapters.torch import optimizer
from shoal.adapters.torch.optimizer import Optimizer
from shoal.cli.main import app
from shoal.config import Limits
from shoal.launch.local import launch
from shoal.optim import SGD
from shoal.policy import Async, Bounded, Policy, Sync
from shoal.runtime import visitor
from shoal.runtime.embedded import EmbeddedJob
from shoal.transport import ALTERNATIVE
from shoal.wire import messages as m
from shoal.wire.messages import Status

from .cluster import Setting, joined, running, together

TURNS = (Async(), Sync(), Bounded(1), Sync(), Async(age_max=50), Bounded(0), Sync())
WORKERS, PACE_SECONDS = 3, 0.002


class Counting(nn.Module):
    """Each gradient is -1: with the sum of contributions at rate 1, every element counts them."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((70, 90), (5,), (64, 96), (4500,))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)

    def forward(self) -> torch.Tensor:
        return -torch.stack([weight.sum() for weight in self.weights]).sum()

    def step(self, steps: Optimizer) -> float:
        self().backward()
        steps.step()
        steps.zero_grad()
        steps.wait()
        return self.value

    @property
    def value(self) -> float:
        (value,) = {item for weight in self.weights for item in weight.detach().unique().tolist()}
        return float(value)


def set_policy(embedded: EmbeddedJob, policy: Policy) -> m.PolicySet:
    """Ask until it is in force."""
    while True:
        answer = visitor.set_policy(
            embedded.address.split(ALTERNATIVE)[-1], embedded.job.name, embedded.job.token, policy.spec, 5_000
        )
        assert not answer.error
        if answer.policy == policy.spec:
            return answer
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("declared", "overlap"), [(Sync(), False), (Sync(), True), (Bounded(2), False)], ids=["sync", "overlap", "bounded"]
)
@pytest.mark.parametrize("scheme", ["shm", "tcp"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_no_worker_sees_a_torn_version_and_nothing_is_lost(
    scheme: str, declared: Policy, overlap: bool, replicas: int
) -> None:
    over, steps, values = threading.Event(), [0] * WORKERS, list[float]()

    def work(embedded: EmbeddedJob, rank: int) -> bool:
        model, seen = Counting(), [0.0]
        with joined(embedded, rank) as worker:
            stepping = optimizer(worker, model, SGD(lr=1.0), sync=declared, reduction="sum", overlap=overlap)
            in_place = worker.parameter_memory(0) is not None
            while not over.is_set():
                seen.append(model.step(stepping))  # one version: every element has counted the same commits
                steps[rank] += 1
                for _ in range(3):
                    time.sleep(PACE_SECONDS * (rank + 1))
                    assert model.value == seen[-1], "parameters changed under a worker that computes on them"
        values.append(seen[-1])
        assert seen == sorted(seen)
        return in_place

    def turn(embedded: EmbeddedJob) -> bool:
        since = 0
        while min(steps) < 2:
            time.sleep(0.005)
        try:
            for policy in TURNS:
                answer = set_policy(embedded, policy)
                assert answer.since > since, "each takes over by an entry of the log"
                since, before = answer.since, list(steps)
                while any(now < then + 2 for now, then in zip(steps, before, strict=True)):
                    time.sleep(0.005)
        finally:
            over.set()
        return False

    with running(WORKERS, Setting(servers=2, scheme=scheme, replicas=replicas)) as embedded:
        in_place = together(
            *(lambda rank=rank: work(embedded, rank) for rank in range(WORKERS)), lambda: turn(embedded)
        )
    assert in_place[:WORKERS] == [scheme == "shm" and declared == Sync()] * WORKERS
    assert max(values) == sum(steps), "every contribution counts once"


TRAINING = """
import sys, time
import torch
import shoal

SIZE = 600
torch.set_num_threads(1)
with shoal.connect() as ps:
    seen = torch.nn.Parameter(torch.zeros(SIZE))
    opt = ps.optimizer([("seen", seen)], shoal.SGD(lr=1.0), sync=shoal.Sync(), reduction="sum")
    data = torch.utils.data.TensorDataset(torch.arange(SIZE))
    for epoch in range(2):
        for (batch,) in ps.loader(data, batch_size=4):
            time.sleep(0.03 * (1 + ps.rank))
            (-seen[batch]).sum().backward()
            opt.step()
            opt.zero_grad()
    print("seen", sorted(set(seen.tolist())))
"""


def test_a_job_of_processes_goes_on_under_the_policy_that_was_set_though_its_coordinator_is_killed(
    tmp_path: Path,
) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    lines, told, seen = list[tuple[str, str]](), list[str](), list[Status]()

    def status(status: Status) -> None:
        seen.append(status)
        pids = {member.name: member.pid for member in status.members}
        if not told and status.version >= 8:
            told.append(shoal("policy", "set", "Async(age_max=100)", "--wait", "20"))
        elif len(told) == 1 and status.version >= 30:
            os.kill(pids["coordinator"], signal.SIGKILL)
            told.append("killed")
        elif len(told) == 2 and status.epoch == 2 and status.phase == "running":
            told.append(shoal("policy", "show"))
            told.append(shoal("policy", "set", "Sync()"))

    def shoal(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.output.strip()

    limits = Limits(resend_ms=200, lease_ms=8_000, heartbeat_ms=200)
    ended = launch(
        (str(script),), 2, 2, limits=limits, max_restarts=9, on_status=status,
        on_line=lambda source, text: lines.append((source, text)),
    )  # fmt: skip
    assert ended == 0, lines
    assert len(told) == 4, (told, lines)
    assert told[0].startswith("Async(age_max=100) is in force since version ")
    assert told[2] == "Async(age_max=100)"
    assert told[3].startswith("Sync() is in force since version ")
    assert {text for name, text in lines if text.startswith("seen")} == {"seen [2.0]"}, (
        "each sample counts once an epoch"
    )
    (ages,) = [dict(item.ages) for item in seen[-1:]]
    assert sum(ages.values()) > 200 and any(ages), "ages of all contributions are known, those before the fall too"
