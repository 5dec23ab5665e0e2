"""What workers and servers on one host promise about the memory they share, through the torch adapter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from shoal.adapters.torch import optimizer
from shoal.optim import SGD
from shoal.policy import Async, Bounded, Policy, Sync
from shoal.runtime.worker import Worker

from .cluster import Setting, joined, running, together

SHAPES = ((1500, 1000), (7,), (1024, 1024), (300,))  # on two servers, each with blocks of both large tensors
SHARED = Setting(servers=2, scheme="shm")


class Counting(nn.Module):
    """Every element of every parameter has gradient -1: at rate 1 all of them count the same commits."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES)

    def count(self) -> None:
        (-sum(weight.sum() for weight in self.weights)).backward()

    @property
    def values(self) -> set[float]:
        return {value for weight in self.weights for value in weight.detach().unique().tolist()}


def counter(worker: Worker, model: nn.Module, policy: Policy) -> torch.optim.Optimizer:
    return optimizer(worker, model, SGD(lr=1.0), sync=policy, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", [Sync(), Sync(quorum=0.5), Bounded(1), Async()], ids=str)
def test_no_worker_ever_sees_a_torn_version(policy: Policy, dtype: torch.dtype) -> None:
    steps = 12

    def work(rank: int) -> tuple[list[float], bool]:
        model, seen = Counting(dtype), [0.0]
        with joined(embedded, rank) as worker:
            steps_of = counter(worker, model, policy)
            in_place = worker.parameter_memory(0) is not None
            for _ in range(steps):
                model.count()
                steps_of.step()
                steps_of.zero_grad()
                (value,) = model.values  # one version: every element has counted the same commits
                seen.append(value)
        return seen, in_place

    with running(3, SHARED) as embedded:
        results = together(*(lambda rank=rank: work(rank) for rank in range(3)))
    for seen, in_place in results:
        assert in_place == (policy == Sync()), "parameters are used where they lie under Sync() alone"
        assert seen == sorted(seen) and seen[1] > 0, "versions only grow"
    if policy == Sync():
        assert all(seen == [3.0 * step for step in range(steps + 1)] for seen, _ in results)


def test_who_leaves_keeps_its_parameters_while_the_others_go_on() -> None:
    models = [Counting(), Counting()]
    with running(2, SHARED) as embedded, joined(embedded, 0) as stays, joined(embedded, 1) as leaves:

        def begin(worker: Worker) -> torch.optim.Optimizer:
            return counter(worker, models[worker.rank], Sync())

        steps = together(lambda: begin(stays), lambda: begin(leaves))

        def step(rank: int) -> None:
            models[rank].count()
            steps[rank].step()
            steps[rank].zero_grad()

        together(lambda: step(0), lambda: step(1))
        leaves.close()
        for _ in range(3):
            step(0)
        assert models[1].values == {2.0}
        assert models[0].values == {5.0}
    assert models[0].values == {5.0}, "and after the end of the job"


def test_what_a_worker_writes_into_its_parameters_is_told_and_does_not_last() -> None:
    model = Counting()
    with running(1, SHARED) as embedded, joined(embedded, 0) as worker:
        steps = counter(worker, model, Sync())
        for writes in (lambda: model.weights[0].data.mul_(0), lambda: model.weights[2].detach().fill_(9)):
            model.count()
            steps.step()
            steps.zero_grad()
            writes()
            steps._warned.clear()  # type: ignore[attr-defined]
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                for _ in range(64):  # a part of the memory is looked at in each step
                    model.count()
                    steps.step()
                    steps.zero_grad()
            assert any("changed in place" in str(item.message) for item in told)
            (value,) = model.values
            assert value == worker.version - 1  # every commit so far, and nothing else


SCRIPT = """
import os, sys, torch, shoal
model = torch.nn.Linear(1000, 1000)
with shoal.connect() as ps:
    steps = ps.optimizer(model, shoal.SGD(lr=1e-3))
    assert ps.worker.parameter_memory(0) is not None
    for step in range(100_000):
        model(torch.ones(1, 1000)).sum().backward()
        steps.step()
        steps.zero_grad()
        if step == 5:
            print("TRAINING", flush=True)
"""


def test_nothing_is_left_behind_when_everything_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-m", "shoal.cli.main", "run", "--workers", "2", "--servers", "2", str(script)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=os.environ | {"TMPDIR": str(temporary)})  # fmt: skip
    assert launcher.stdout is not None
    assert any("TRAINING" in line for line in launcher.stdout)
    processes = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(sockets(processes)) >= 2, "both servers listen"
    launcher.send_signal(signal.SIGKILL)  # the kernel kills its children with it
    launcher.wait()
    until = time.monotonic() + 10
    while sockets(processes) and time.monotonic() < until:
        time.sleep(0.05)
    assert not sockets(processes), "no listener is left"
    assert not os.listdir(temporary)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "shoal" in name}
    launcher.stdout.close()


def sockets(processes: list[str]) -> list[str]:
    """Addresses at which these processes listen for who shares memory with them."""
    lines = [line for line in Path("/proc/net/unix").read_text().splitlines() if "@shoal/" in line]
    return [line for line in lines if any(f"/{process}-" in line for process in processes)]
