"""A worker of `shoal bench exchange`, of either side: takes steps when told to, and times each.

python -m shoal.bench.exchange_worker SETUP    (SETUP is JSON, see Setup)
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec
import torch
from msgspec.structs import replace

from shoal.bench.control import Follower
from shoal.bench.orders import SHOAL, Answer, Order, Setup, worker_name
from shoal.bench.peers import PEERS, Step, join_peers, shoal_step
from shoal.bench.workload import Preset, difference, digest, model_of, reference
from shoal.client import connect
from shoal.config import Job, Limits
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.worker import Worker


def main() -> None:
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // setup.workers))
    if setup.side != SHOAL:
        join_peers(setup.meeting, setup.rank, setup.workers)
        _follow(setup, lambda model: PEERS[setup.side](model, setup.optimizer, setup.workers))
    elif setup.transport == "inproc":
        _follow_together(setup)
    else:
        with connect() as ps:
            _follow(setup, lambda model: shoal_step(model, setup.optimizer, ps.worker))


def _follow_together(setup: Setup) -> None:
    """All workers as threads of this process, with the servers among them."""
    job = Job(workers=setup.workers, servers=setup.servers, limits=Limits.from_environment())
    embedded = EmbeddedJob(job)

    def follow(rank: int) -> None:
        worker = Worker(job, embedded.address, rank, thread=embedded.thread)
        try:
            _follow(replace(setup, rank=rank), lambda model: shoal_step(model, setup.optimizer, worker))
        finally:
            worker.close()

    with ThreadPoolExecutor(setup.workers) as pool:
        for thread in as_completed([pool.submit(follow, rank) for rank in range(setup.workers)]):
            if thread.exception() is not None:
                # The others would wait for this worker: end the process, and its reason shows.
                traceback.print_exception(thread.exception())
                os._exit(1)
    embedded.close()


def _follow(setup: Setup, build: Callable[[Preset], Step]) -> None:
    """One worker: build the model, then obey until the benchmark is over."""
    model = model_of(setup.params, setup.rank)
    step = build(model)
    taken = 0
    follower = Follower(setup.control, worker_name(setup.side, setup.rank), Order)
    for order in follower:
        if order.steps:
            follower.answer(Answer(seconds=tuple(_timed(step, number) for number in range(taken, taken + order.steps))))
            taken += order.steps
        else:
            expected = reference(setup.params, setup.workers, setup.optimizer, taken) if setup.rank == 0 else None
            follower.answer(
                Answer(
                    digest=digest(model.weights),
                    difference=None if expected is None else difference(model.weights, expected),
                )
            )


def _timed(step: Step, number: int) -> float:
    start = time.perf_counter()
    step(number)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
