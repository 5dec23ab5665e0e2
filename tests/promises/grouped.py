"""A script of the tests of groups: trains a small model, and writes what it came to.

The samples of a step are the same however many processes share them, so a group of ranks computes what one worker does
that has them all (--plain).
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import shoal

SAMPLES = 8  # of a group's, or an ordinary worker's, step
WIDTH = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("--plain", action="store_true", help="every worker is alone, with all samples of a step")
    parser.add_argument("--port", help="ranks 0 and 1 of the job make a group that meets there, the others none")
    parser.add_argument("--wrapped", action="store_true", help="in DistributedDataParallel")
    parser.add_argument("--sharded", action="store_true", help="by fully_shard")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--die", default="", help="RANK:STEP, once; the others wait until it is started again")
    parser.add_argument("--loader", type=int, default=0, help="so many samples, two passes, in batches of 2")
    parser.add_argument("--local", type=int, default=0, help="steps in a window of LocalSteps")
    parser.add_argument("--push", default="")
    parser.add_argument("--pull", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ps = shoal.connect()
    alone = options.plain or (options.port is not None and ps.rank > 1)
    if options.port is not None and not alone:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=options.port, RANK=str(ps.rank), WORLD_SIZE="2")
    group: Any = None
    part, parts, unit = 0, 1, ps.rank if options.plain else 1
    if not alone:
        dist.init_process_group("gloo")
        group, part, parts = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
        unit = int(os.environ.get("SHOAL_GROUP", "0"))
    torch.manual_seed(5)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    model: nn.Module = nn.Sequential(*layers, nn.Linear(WIDTH, 1))
    opt: Any
    if options.local:
        inner = torch.optim.SGD(model.parameters(), lr=0.002)
        sync = shoal.LocalSteps(every=options.local, inner=inner)
        opt = ps.optimizer(model, sync=sync, group=group, push=options.push, pull=options.pull)
    elif options.sharded and not alone:
        for layer in layers:
            fully_shard(layer)
        fully_shard(model)
        opt = ps.optimizer(model, shoal.SGD(lr=0.002, momentum=0.9))
    elif options.wrapped and not alone:
        model = DistributedDataParallel(model)
        opt = ps.optimizer(model, shoal.SGD(lr=0.002, momentum=0.9), push=options.push, pull=options.pull)
    else:
        opt = ps.optimizer(model, shoal.SGD(lr=0.002, momentum=0.9), group=group, push=options.push, pull=options.pull)
    taken = 0

    def step(inputs: Tensor, targets: Tensor) -> None:
        nonlocal taken
        opt.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        # Without a loader every process counts as one sample, unless it says: here a group has as many as a worker.
        opt.step(**({} if options.loader or options.local else {"samples": len(inputs)}))
        taken += 1

    torch.manual_seed(7)
    if options.loader:
        inputs = torch.randn(options.loader, WIDTH)
        loader = ps.loader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=2)
        for _ in range(2):
            for x, y in loader:
                step(x, y)
    while not options.loader and (taken < options.steps if options.local else opt.clock <= options.steps):
        clock = taken + 1 if options.local else opt.clock
        die(options, ps.rank, clock)
        torch.manual_seed(1000 * unit + clock)
        x = torch.randn(SAMPLES, WIDTH)
        mine = slice(part * SAMPLES // parts, (part + 1) * SAMPLES // parts)
        step(x[mine], x[mine].sum(1, keepdim=True))
    if options.local:
        opt.synchronise()
    whole = [item.full_tensor() if hasattr(item, "full_tensor") else item for item in model.parameters()]
    flat = torch.cat([item.detach().reshape(-1) for item in whole])
    found = {"flat": flat, "bytes": sum(ps.worker.bytes_moved()), "steps": taken, "clock": ps.worker.clock}
    torch.save(found, options.place / f"{ps.rank}.pt")


def die(options: argparse.Namespace, rank: int, step: int) -> None:
    """The rank's process ends at this step; ordinary workers, and other groups, come no further until it is back."""
    if not options.die:
        return
    victim, at = map(int, options.die.split(":"))
    died = options.place / "died"
    if rank == victim and step == at and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == victim and died.exists():
        (options.place / "back").touch()
    while step == options.steps and not (options.place / "back").exists():
        time.sleep(0.01)


if __name__ == "__main__":
    main()
