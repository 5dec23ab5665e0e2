"""The worker of a job of `shoal bench fleet`: takes steps for as long as it is told to, and times each.

python -m shoal.bench.sharing_worker TENANT    (TENANT is JSON, see orders.Tenant)
"""

from __future__ import annotations

import os
import sys
import time

import msgspec
import torch

from shoal.adapters.torch import optimizer as shoal_optimizer
from shoal.bench.control import Follower
from shoal.bench.orders import Answer, Tenant, Window
from shoal.bench.peers.loop import loop
from shoal.bench.rules import RULES
from shoal.bench.workload import model_of
from shoal.client import connect
from shoal.policy import Sync


def main() -> None:
    tenant = msgspec.json.decode(sys.argv[1], type=Tenant)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with connect() as ps:
        model = model_of(tenant.params, ps.rank)
        step = loop(model, shoal_optimizer(ps.worker, model, RULES[tenant.optimizer], sync=Sync()))
        follower = Follower(tenant.control, tenant.name, Window)
        number = 0
        for window in follower:
            seconds: list[float] = []
            until = time.monotonic() + window.seconds
            while not seconds or time.monotonic() < until:
                start = time.perf_counter()
                step(number)
                number += 1
                seconds.append(time.perf_counter() - start)
            follower.answer(Answer(seconds=tuple(seconds)))


if __name__ == "__main__":
    main()
