"""What stale gradients count for: as the policy says, on the servers' own parameters."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from shoal.adapters.torch import optimizer
from shoal.optim import SGD
from shoal.policy import Async, Bounded, DelayCompensated, Policy
from shoal.runtime.worker import Worker

from .cluster import QUICK, Observer, Setting, joined, running, together
from .processes import Process, crew, wait_until

BEFORE = 3  # updates by worker 0 while worker 1 computes


class Counting(nn.Module):
    """Each gradient is -1: at rate 1 every contribution adds its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7, 3))

    def step(self, steps: torch.optim.Optimizer) -> float:
        (-self.weight.sum()).backward()
        steps.step()
        steps.zero_grad()
        (value,) = self.weight.detach().unique().tolist()
        return float(value)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    ("policy", "adds"),
    [
        (Async(), 1.0),
        (Async(weight="inverse"), 1 / (1 + BEFORE)),
        (Bounded(9, weight="inverse", age_max=BEFORE), 1 / (1 + BEFORE)),
        (Async(weight="inverse", age_max=BEFORE - 1), 0.0),
        # g = -1 at 0, applied at 3: g' = g + rate g g (3 - 0)
        (Async(weight=DelayCompensated(rate=0.25, mean_square=0.0)), 1 - 0.25 * BEFORE),
        (Bounded(9, weight=DelayCompensated(rate=0.25, mean_square=0.0)), 1 - 0.25 * BEFORE),
    ],
    ids=repr,
)
def test_a_stale_contribution_counts_as_the_policy_says(policy: Policy, adds: float, replicas: int) -> None:
    models = [Counting(), Counting()]

    def begin(worker: Worker) -> torch.optim.Optimizer:
        return optimizer(worker, models[worker.rank], SGD(lr=1.0), sync=policy)

    setting = Setting(servers=2, replicas=replicas)
    with running(2, setting) as embedded, joined(embedded, 0) as quick, joined(embedded, 1) as slow:
        steps = together(lambda: begin(quick), lambda: begin(slow))
        assert [models[0].step(steps[0]) for _ in range(BEFORE)] == [1.0, 2.0, 3.0]
        assert models[1].step(steps[1]) == BEFORE + adds
        assert models[1].step(steps[1]) == BEFORE + adds + 1, "it goes on with fresh parameters either way"


STOPPED_SECONDS = 2.0
START_SECONDS = 120.0  # three processes load torch


def progress(process: Process) -> tuple[int, int]:
    """Its steps so far, and its clock."""
    told = [line.split() for line in process.lines if line.startswith("step ")]
    return (int(told[-1][1]), int(told[-1][3])) if told else (0, 0)


@pytest.mark.slow
def test_no_worker_waits_for_one_that_is_stopped_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    """Decoupled local steps, two of three workers a quorum. The third is no more dead than one on a slow machine."""
    limits = replace(QUICK, lease_ms=60_000, wait_ms=60_000, start_ms=60_000)
    setting, observer, end = Setting(servers=2, scheme="tcp"), Observer(), tmp_path / "end"
    with running(3, setting, limits, observer) as embedded, crew(embedded.job, embedded.address) as workers:
        first, second, slow = (workers.start(rank, "local", 5, "--end", end, "--pause", 0.005) for rank in range(3))
        everyone = (first, second, slow)
        begun = "all are in their fourth window"
        wait_until(lambda: min(progress(each)[1] for each in everyone) > 3, begun, START_SECONDS)
        os.kill(slow.pid, signal.SIGSTOP)
        began, before = time.monotonic(), [progress(each) for each in (first, second)]

        def went_on(each: Process, since: tuple[int, int]) -> bool:
            steps, clock = progress(each)
            return steps >= since[0] + 100 and clock >= since[1] + 5

        wait_until(lambda: all(map(went_on, (first, second), before)), "100 steps and 5 windows of the two others")
        time.sleep(max(0.0, began + STOPPED_SECONDS - time.monotonic()))
        clock = progress(slow)[1]
        os.kill(slow.pid, signal.SIGCONT)
        wait_until(lambda: progress(slow)[1] > clock + 2, "it goes on where it was")
        end.touch()
        assert [each.wait() for each in everyone] == [0, 0, 0]
    found = [next(line.split() for line in each.lines if line.startswith("longest ")) for each in everyone]
    assert max(float(longest) for _, longest, _, _ in found[:2]) < STOPPED_SECONDS / 2, found
    combined = [item.contributor for commit in observer.updates for item in commit.contributors]
    clocks = {(rank, number) for rank, told in enumerate(found) for number in range(1, int(told[3]))}
    assert {(who.worker, who.clock) for who in combined} == clocks, "each window of each worker is in the log"
    assert len(combined) == len(clocks), "once"
