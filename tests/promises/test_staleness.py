"""What stale gradients count for: as the policy says, on the servers' own parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal.adapters.torch import optimizer
from shoal.optim import SGD
from shoal.policy import Async, Bounded, DelayCompensated, Policy
from shoal.runtime.worker import Worker

from .cluster import Setting, joined, running, together

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
