"""A process of `shoal bench exchange`, of either side: takes steps when told to, and times each.

python -m shoal.bench.exchange_worker SETUP    (SETUP is JSON, see orders.Setup)
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

import msgspec
import torch
from msgspec.structs import replace

from shoal.adapters.torch import optimizer as shoal_optimizer
from shoal.bench.orders import Setup
from shoal.bench.peers import collectives, torch_rpc
from shoal.bench.peers.loop import loop
from shoal.bench.rules import RULES
from shoal.bench.turns import Step, follow, outcome_of
from shoal.bench.workload import Preset, model_of
from shoal.client import connect
from shoal.config import Job, Limits
from shoal.policy import Sync
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.worker import Worker


def main() -> None:
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    match setup.side, setup.role:
        case "shoal", _ if setup.transport == "inproc":
            _follow_together(setup)
        case "shoal", _:
            with connect() as ps:
                _follow(setup, lambda model: _shoal_step(model, setup.optimizer, ps.worker))
        case "rpc", "server":
            torch_rpc.serve(setup)
        case "rpc", _:
            torch_rpc.join(setup)
            _follow(setup, lambda model: torch_rpc.rpc_step(model, setup.rank))
        case "ray", _:
            from shoal.bench.peers import ray_actors

            ray_actors.lead(setup)
        case "tensorflow", _:
            from shoal.bench.peers import tensorflow_strategy

            tensorflow_strategy.lead(setup)
        case _:
            collectives.join(setup.meeting, setup.rank, setup.workers)
            build = {"ddp": collectives.ddp, "allreduce": collectives.allreduce}[setup.side]
            _follow(setup, lambda model: build(model, setup.optimizer))


def _follow(setup: Setup, build: Callable[[Preset], Step]) -> None:
    """One worker: build the model, then obey until the benchmark is over."""
    model = model_of(setup.params, setup.rank)
    follow(setup.control, setup.name, {"": build(model)}, partial(outcome_of, setup, model.weights))


def _shoal_step(model: Preset, optimizer: str, worker: Worker) -> Step:
    """Shoal's public optimizer under Sync(): gradients leave from backward's hooks."""
    return loop(model, shoal_optimizer(worker, model, RULES[optimizer], sync=Sync()))


def _follow_together(setup: Setup) -> None:
    """All workers as threads of this process, with the servers among them."""
    job = Job(workers=setup.workers, servers=setup.servers, limits=Limits.from_environment())
    embedded = EmbeddedJob(job)

    def run(rank: int) -> None:
        worker = Worker(job, embedded.address, rank, thread=embedded.thread)
        try:
            _follow(replace(setup, rank=rank), lambda model: _shoal_step(model, setup.optimizer, worker))
        finally:
            worker.close()

    with ThreadPoolExecutor(setup.workers) as pool:
        for thread in as_completed([pool.submit(run, rank) for rank in range(setup.workers)]):
            if thread.exception() is not None:
                # The others would wait for this worker: end the process, and its reason shows.
                traceback.print_exception(thread.exception())
                os._exit(1)
    embedded.close()


if __name__ == "__main__":
    main()
