"""One worker process of the promises' tests, told what to do by its arguments; SHOAL_* say where its job is.

    worker.py clocks COUNT     trains the test's table up to that clock
    worker.py local STEPS      takes local steps, decoupled, a window of so many, until --end FILE exists
    worker.py samples EPOCHS   leases samples; sample i adds 1 to the i-th parameter, so each shows how often it counted

--die MOMENT kills the process with SIGKILL: "compute:4" while it computes its clock 4, "before:Stage:7" or
"after:Ready:2" around the 7th Stage, 2nd Ready, ... frame that it sends. --deaths PLACE reads the moment from the file
PLACE/RANK and removes it, so that the worker's next life is another. --hold CLOCK FILE waits at that clock until the
file exists. --results PLACE: where the parameters at the end are written, to PLACE/RANK.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cluster import begin, counted, counting_table, promised_table, step, to_bytes

from shoal.runtime import process
from shoal.runtime.worker import Worker
from shoal.transport.base import Connection, Wrap, Wrapped, unwrapped
from shoal.wire import messages as m
from shoal.wire.framing import Buffer

LEAVES_AFTER_SECONDS = 0.005  # enough for a frame to leave
HOLD_SECONDS = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["clocks", "local", "samples"])
    parser.add_argument("count", type=int)
    parser.add_argument("--die", default="")
    parser.add_argument("--deaths", type=Path)
    parser.add_argument("--hold", nargs=2)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--end", type=Path)
    parser.add_argument("--policy", default="sync", help="sync, sync:QUORUM, bounded:STALENESS or async")
    parser.add_argument("--packed", action="store_true", help="the table's gradients")
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a step computes")
    options = parser.parse_args()
    rank = process.rank_from("SHOAL_RANK")
    if options.deaths is not None and (told := options.deaths / f"{rank}").exists():
        options.die = told.read_text()
        told.unlink()
    if options.task == "local":
        import shoal.adapters.torch.local  # noqa: F401 (torch takes its time, which counts once the worker has joined)
    moment, _, when = options.die.partition(":")
    wrap = Deadly.wrap(moment, when) if moment in ("before", "after") else unwrapped
    estate = process.take_estate()
    worker = Worker(process.job_from(), os.environ["SHOAL_COORDINATOR"], rank, wrap=wrap, estate=estate)
    print(f"joined as {worker.rank}", flush=True)
    final = {"clocks": train, "local": wander, "samples": count}[options.task](worker, options)
    if options.results is not None:
        (options.results / f"{rank}").write_bytes(final)
    worker.close()


def train(worker: Worker, options: argparse.Namespace) -> bytes:
    spec = promised_table(options.packed)
    values = begin(worker, spec)
    while worker.clock <= options.count:
        compute(worker, options)
        step(worker, spec)
    return to_bytes(values)


def wander(worker: Worker, options: argparse.Namespace) -> bytes:
    import torch

    from shoal.adapters.local_steps import LocalSteps
    from shoal.adapters.torch.local import LocalOptimizer
    from shoal.policy import Decoupled

    model = torch.nn.Linear(20, 20)
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    opt = LocalOptimizer(worker, model, LocalSteps(options.count, inner, overlap=2, sync=Decoupled(2, 0.05)))
    steps, longest = 0, 0.0
    while not options.end.exists():
        time.sleep(options.pause)
        model(torch.ones(4, 20)).square().mean().backward()
        began = time.monotonic()
        opt.step()
        longest, steps = max(longest, time.monotonic() - began), steps + 1
        opt.zero_grad()
        print(f"step {steps} clock {opt.clock}", flush=True)
    opt.synchronise()
    print(f"longest {longest} clock {opt.clock}", flush=True)
    return b""


def count(worker: Worker, options: argparse.Namespace) -> bytes:
    spec, dataset = counting_table(options.policy, options.size), counted(options.size)
    seen = np.zeros(options.size, np.float32)
    begin(worker, spec, [seen])
    for epoch in range(options.count):
        while (lease := worker.lease(dataset, epoch)) is not None:
            gradient = np.zeros(options.size, np.float32)
            for start, stop in lease.spans:
                gradient[start:stop] -= 1.0
            compute(worker, options)
            worker.push(0, gradient.view(np.uint8))
            fresh = worker.step([1.0])
            print(f"{'committed' if fresh.committed else 'dropped'} {lease}", flush=True)
    return seen.tobytes()


def compute(worker: Worker, options: argparse.Namespace) -> None:
    """What happens between two steps, apart from the gradient."""
    print(f"clock {worker.clock}", flush=True)
    if options.hold and worker.clock == int(options.hold[0]):
        until = time.monotonic() + HOLD_SECONDS
        while not Path(options.hold[1]).exists() and time.monotonic() < until:
            time.sleep(0.01)
    if options.die == f"compute:{worker.clock}":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(options.pause)


class Deadly(Wrapped):
    """A Connection of a process that is killed around one of its frames."""

    left = 0

    def __init__(self, inner: Connection, moment: str, kind: type) -> None:
        super().__init__(inner)
        self._moment, self._kind = moment, kind

    @classmethod
    def wrap(cls, moment: str, when: str) -> Wrap:
        name, _, ordinal = when.partition(":")
        cls.left = int(ordinal)
        return lambda connection: cls(connection, moment, getattr(m, name))

    def send(self, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        mine = isinstance(message, self._kind)
        Deadly.left -= mine
        if mine and Deadly.left == 0:
            if self._moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            asyncio.get_running_loop().call_later(LEAVES_AFTER_SECONDS, os.kill, os.getpid(), signal.SIGKILL)
        super().send(message, payload, files)


if __name__ == "__main__":
    main()
