"""A worker of `shoal bench link --train`: trains a GPT as one side does, or only computes.

python -m shoal.bench.link_training_worker TRAINEE    (TRAINEE is JSON, see link_training.Trainee)
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable

import msgspec
import torch
from torch import nn

import shoal
from shoal.adapters.torch import LocalOptimizer, Optimizer
from shoal.bench.link_training import DDP, WORKERS, Trainee
from shoal.bench.orders import BOTH, COMPUTE, Answer
from shoal.bench.overlap_worker import backward, batches_of, gpt
from shoal.bench.peers import collectives
from shoal.bench.turns import follow
from shoal.bench.workload import SETS, digest
from shoal.client import ParameterServer

RATE = 1e-4


def main() -> None:
    trainee = msgspec.json.decode(sys.argv[1], type=Trainee)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = gpt(trainee.size)
    if trainee.method.name == DDP:
        collectives.join(trainee.meeting, trainee.rank, WORKERS)
        obey(trainee, model, collectives.wrapped(model), fused(model), lambda: None)
        return
    with shoal.connect() as ps:
        opt = optimizer(trainee, ps, model)
        obey(trainee, model, model, opt, opt.synchronise if isinstance(opt, LocalOptimizer) else lambda: None)


def obey(
    trainee: Trainee, model: nn.Module, called: nn.Module, opt: torch.optim.Optimizer, settle: Callable[[], None]
) -> None:
    """Take steps when told to. settle: brings all workers to the same parameters."""
    twin = copy.deepcopy(model)
    alone = fused(twin)
    batches = batches_of(trainee.size, trainee.rank)

    def step(trained: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        backward(trained(*batches[number % SETS]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if isinstance(optimizer, Optimizer) and (number + 1) % trainee.steps == 0:
            optimizer.wait()  # a turn ends with its parameters in place

    def outcome(_: int) -> Answer:
        settle()
        return Answer(digests=(digest(model.parameters()),))

    steps = {COMPUTE: lambda number: step(twin, alone, number), BOTH: lambda number: step(called, opt, number)}
    follow(trainee.control, trainee.name, steps, outcome)


def optimizer(trainee: Trainee, ps: ParameterServer, model: nn.Module) -> torch.optim.Optimizer:
    method = trainee.method
    codecs = {"push": method.codec, "pull": method.codec}
    if not method.every:
        return ps.optimizer(model, shoal.AdamW(lr=RATE), sync=shoal.Sync(), overlap=True, **codecs)
    local = shoal.LocalSteps(method.every, fused(model), fragments=method.fragments, overlap=method.overlap, mix=0.5)
    return ps.optimizer(model, sync=local, **codecs)


def fused(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), RATE, fused=True)


if __name__ == "__main__":
    main()
