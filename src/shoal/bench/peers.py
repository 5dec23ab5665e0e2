"""The sides of the exchange: Shoal as its users see it, and what they would use in its place.

All run the same loop (forward, backward, step, zero_grad) on the same model. The peers are set up as
their documentation advises for speed: processes on loopback over gloo, torch's fused optimizer,
gradients as views of the buckets that travel (which saves DDP a copy back), buckets rebuilt in the
order in which gradients come, no buffers broadcast, gradients set to None. Cores are shared out
evenly among the workers' threads.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from shoal.adapters.torch import optimizer as shoal_optimizer
from shoal.bench.rules import RULES
from shoal.bench.workload import SETS, Preset, torch_optimizer
from shoal.policy import Sync
from shoal.runtime.worker import Worker

Step = Callable[[int], None]  # takes the number of a step, counted from 0, and returns when it is over

WAIT = timedelta(seconds=120)


class Peer(Protocol):
    def __call__(self, model: Preset, optimizer: str, workers: int) -> Step: ...


def shoal_step(model: Preset, optimizer: str, worker: Worker) -> Step:
    """Shoal's public optimizer under Sync(): gradients leave from backward's hooks."""
    chosen = shoal_optimizer(worker, model, RULES[optimizer], sync=Sync())
    return _loop(model, chosen)


def ddp(model: Preset, optimizer: str, workers: int) -> Step:
    """DistributedDataParallel: all-reduce of buckets of 25 MiB during backward, then the fused optimizer."""
    del workers
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True)
    return _loop(wrapped, torch_optimizer(optimizer, model.parameters()))


def allreduce(model: Preset, optimizer: str, workers: int) -> Step:
    """One all-reduce of all gradients, gathered into one flat buffer, then the fused optimizer."""
    weights = list(model.weights)
    flat = torch.zeros(sum(weight.numel() for weight in weights))
    views: list[Tensor] = []
    for weight in weights:
        start = sum(view.numel() for view in views)
        views.append(flat[start : start + weight.numel()].view(weight.shape))
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


PEERS: dict[str, Peer] = {"ddp": ddp, "allreduce": allreduce}


def join_peers(meeting: str, rank: int, workers: int) -> None:
    """Form the peers' process group. meeting: a file that does not exist yet, the same for all."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers, timeout=WAIT)


def _loop(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(number: int) -> None:
        model(number % SETS).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
