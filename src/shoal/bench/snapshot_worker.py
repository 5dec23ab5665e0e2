"""A worker of `shoal bench snapshot`: takes plain steps, or steps until a snapshot is written.

python -m shoal.bench.snapshot_worker KEEPER    (KEEPER is JSON, see orders.Keeper)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from shoal.adapters.torch import optimizer as shoal_optimizer
from shoal.bench.control import Follower
from shoal.bench.orders import SHOAL, Keeper, Shot, Taken, worker_name
from shoal.bench.peers.loop import loop
from shoal.bench.rules import RULES
from shoal.bench.turns import Step
from shoal.bench.workload import model_of
from shoal.client import ParameterServer, connect
from shoal.policy import Sync


def main() -> None:
    keeper = msgspec.json.decode(sys.argv[1], type=Keeper)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with connect() as ps:
        model = model_of(keeper.params, keeper.rank)
        step = loop(model, shoal_optimizer(ps.worker, model, RULES[keeper.optimizer], sync=Sync()))
        follower = Follower(keeper.control, worker_name(SHOAL, keeper.rank), Shot)
        for shot in follower:
            began = time.time()
            follower.answer(Taken(tuple(_timed(ps, step, shot)), began))


def _timed(ps: ParameterServer, step: Step, shot: Shot) -> Iterator[float]:
    """Seconds of each step."""
    if shot.path and ps.rank == 0:
        ps.snapshot(shot.path, wait=False)
    taken, last = 0, shot.steps or None
    while last is None or taken < last:
        start = time.perf_counter()
        step(taken)
        taken += 1
        yield time.perf_counter() - start
        if last is None:
            last = _last(ps, taken, Path(shot.last))


def _last(ps: ParameterServer, taken: int, told: Path) -> int | None:
    """How many steps all workers take. Worker 0 says so before its last one, which no other can end before that."""
    if ps.rank == 0 and not ps.worker.saving:
        told.write_text(str(taken + 1))
        return taken + 1
    text = told.read_text() if ps.rank and told.exists() else ""
    return int(text) if text else None


if __name__ == "__main__":
    main()
