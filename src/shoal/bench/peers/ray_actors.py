"""Peer: Ray's documented parameter-server pattern (an actor that holds the parameters, actors that compute).

    gradients = [worker.compute.remote(current) for worker in workers]
    current = server.apply.remote(*gradients)

Arrays travel through the object store of the machine, where each is written once and read where it lies:
the server sums gradients off the store, and the workers' parameters are the arrays that the server put
there. A step is over when the next parameters are in the store. Ray listens on loopback only, without a
dashboard, in a folder of its own, and ends with this process, which started it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace

from shoal.bench.orders import Answer, Setup
from shoal.bench.shapes import elements, gpt_shapes
from shoal.bench.turns import follow, outcome_of
from shoal.bench.workload import SETS, Preset, model_of, torch_optimizer

Arrays = list[npt.NDArray[np.float32]]

STORE_COPIES = 4  # of all that a step puts into the store: this step's, the last one's, and room for gaps
STORE_BYTES_MIN = 256 << 20


class Server:
    """Holds the parameters."""

    def __init__(self, setup: Setup, threads: int) -> None:
        torch.set_num_threads(threads)
        self._weights = list(Preset(gpt_shapes(setup.params), ()).weights)
        self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        self._optimizer = torch_optimizer(setup.optimizer, self._weights)

    def parameters(self) -> Arrays:
        return [weight.detach().numpy() for weight in self._weights]

    def apply(self, *parts: Arrays) -> Arrays:
        """The mean of the workers' gradients, in their order; returns the parameters after it."""
        with torch.no_grad():
            first, *others = [_tensors(part) for part in parts]
            torch._foreach_copy_(self._gradients, first)
            for other in others:
                torch._foreach_add_(self._gradients, other)
            torch._foreach_div_(self._gradients, float(len(parts)))
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        self._optimizer.step()
        return self.parameters()


class Worker:
    """Computes gradients at the parameters it is handed."""

    def __init__(self, setup: Setup, threads: int) -> None:
        torch.set_num_threads(threads)
        self._setup = setup
        self._model = model_of(setup.params, setup.rank)

    def compute(self, parameters: Arrays, number: int) -> Arrays:
        self._place(parameters)
        self._model(number % SETS).backward()
        gradients = [weight.grad.numpy() for weight in self._model.weights if weight.grad is not None]
        self._model.zero_grad(set_to_none=True)
        return gradients

    def outcome(self, parameters: Arrays, steps: int) -> Answer:
        self._place(parameters)
        return outcome_of(self._setup, self._model.weights, steps)

    def _place(self, parameters: Arrays) -> None:
        for weight, value in zip(self._model.weights, _tensors(parameters), strict=True):
            weight.data = value


def lead(setup: Setup) -> None:
    """Start Ray and the actors, then obey until the benchmark is over."""
    ray: Any = importlib.import_module("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cores = len(os.sched_getaffinity(0))
    model_bytes = 4 * elements(gpt_shapes(setup.params))
    ray.init(
        _node_ip_address="127.0.0.1",
        _temp_dir=str(Path(setup.control).parent / "ray"),  # which the benchmark removes
        include_dashboard=False,
        num_cpus=setup.workers + 1,
        object_store_memory=max(STORE_BYTES_MIN, STORE_COPIES * (setup.workers + 1) * model_bytes),
        _system_config={"preallocate_plasma_memory": True},  # no step waits for the first touch of a page
        log_to_driver=False,
        configure_logging=False,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Ray is shut down before this process ends
    try:
        _follow(ray, setup, cores)
    finally:
        ray.shutdown()


def _follow(ray: Any, setup: Setup, cores: int) -> None:
    server = ray.remote(Server).options(num_cpus=1).remote(setup, cores)
    make = ray.remote(Worker).options(num_cpus=1)
    workers = [make.remote(replace(setup, rank=rank), max(1, cores // setup.workers)) for rank in range(setup.workers)]
    current = [server.parameters.remote()]
    ray.wait(current)

    def step(number: int) -> None:
        gradients = [worker.compute.remote(current[0], number) for worker in workers]
        current[0] = server.apply.remote(*gradients)
        ray.wait(current)

    def outcome(steps: int) -> Answer:
        answers: Sequence[Answer] = ray.get([worker.outcome.remote(current[0], steps) for worker in workers])
        (found,) = (answer.difference for answer in answers if answer.difference is not None)
        return Answer(digests=tuple(digest for answer in answers for digest in answer.digests), difference=found)

    follow(setup.control, setup.name, {"": step}, outcome)


def _tensors(arrays: Arrays) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # arrays in the store are read-only, and nobody writes to them
        return [torch.from_numpy(array) for array in arrays]
