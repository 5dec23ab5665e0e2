"""Peers without a server: every worker holds all parameters and state, and gradients are all-reduced.

Set up as torch's documentation advises for speed: processes over gloo, torch's fused optimizer,
gradients as views of the buckets that travel (which saves DDP a copy back), buckets rebuilt in the
order in which gradients come, no buffers broadcast, gradients set to None. Cores are shared out
evenly among the workers' threads.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shoal.bench.peers.loop import loop
from shoal.bench.turns import Step
from shoal.bench.workload import SETS, Preset, torch_optimizer

WAIT = timedelta(seconds=120)

Model = TypeVar("Model", bound=nn.Module)


def join(meeting: str, rank: int, workers: int) -> None:
    """Form the process group. meeting: a file that does not exist yet, the same for all."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers, timeout=WAIT)


def wrapped(model: nn.Module) -> DistributedDataParallel:
    """All-reduce of buckets of 25 MiB during backward."""
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True)


def ddp(model: Preset, optimizer: str) -> Step:
    """DistributedDataParallel, then the fused optimizer."""
    return loop(wrapped(model), torch_optimizer(optimizer, model.parameters()))


def allreduce(model: Preset, optimizer: str) -> Step:
    """One all-reduce of all gradients, gathered into one flat buffer, then the fused optimizer."""
    weights = list(model.weights)
    workers = dist.get_world_size()
    flat = torch.zeros(sum(weight.numel() for weight in weights))
    views: list[Tensor] = []
    start = 0
    for weight in weights:
        views.append(flat[start : start + weight.numel()].view(weight.shape))
        start += weight.numel()
    chosen = torch_optimizer(optimizer, weights)

    def step(number: int) -> None:
        model(number % SETS).backward()
        for weight, view in zip(weights, views, strict=True):
            assert weight.grad is not None
            torch.div(weight.grad, workers, out=view)
            weight.grad = view
        dist.all_reduce(flat)
        chosen.step()
        chosen.zero_grad(set_to_none=True)

    return step
