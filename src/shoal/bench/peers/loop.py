"""The loop that users write, one step at a time: forward, backward, step, zero_grad."""

from __future__ import annotations

import torch

from shoal.bench.turns import Step
from shoal.bench.workload import SETS


def loop(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """A step of a model that is called with the number of its set of gradients."""

    def step(number: int) -> None:
        model(number % SETS).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
