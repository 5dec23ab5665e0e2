"""Peer: torch's RPC parameter server, as its tutorial on asynchronous execution builds it.

One call a step: a worker hands in its gradients and gets the parameters back. The call's future is
resolved for all workers by the last to arrive, on the server, after the fused optimizer has run: no
thread waits (@rpc.functions.async_execution). Tensors travel over TensorPipe beside the pickled part,
from the memory they lie in; the parameters that come back become the model's own without a copy.
Gradients are combined in the order of ranks, so that all runs give the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import rpc

from shoal.bench.orders import Setup
from shoal.bench.shapes import gpt_shapes
from shoal.bench.turns import Step
from shoal.bench.workload import SETS, Preset, torch_optimizer

WAIT_SECONDS = 600.0
SERVER = "server"
THREADS = 16  # TensorPipe's default

# By TCP no byte may take the shortcuts that TensorPipe knows within a host: shared memory and reading
# the other process's memory.
TRANSPORTS = {"tcp": (["uv"], ["basic"])}


class Table:
    """The parameters on the server, and what has arrived for the step under way."""

    def __init__(self, setup: Setup) -> None:
        self._weights = list(Preset(gpt_shapes(setup.params), ()).weights)
        self._optimizer = torch_optimizer(setup.optimizer, self._weights)
        self._workers = setup.workers
        self._lock = threading.Lock()
        self._arrived: dict[int, Sequence[Tensor]] = {}
        self._fresh: torch.futures.Future[list[Tensor]] = torch.futures.Future()

    def exchange(self, rank: int, gradients: Sequence[Tensor]) -> torch.futures.Future[list[Tensor]]:
        """A future of the parameters after the step that these gradients are part of."""
        with self._lock:
            self._arrived[rank] = gradients
            fresh = self._fresh
            if len(self._arrived) == self._workers:
                self._update([list(self._arrived[rank]) for rank in range(self._workers)])
                self._arrived, self._fresh = {}, torch.futures.Future()
                fresh.set_result([weight.detach() for weight in self._weights])
            return fresh

    def _update(self, parts: Sequence[list[Tensor]]) -> None:
        mean = parts[0]
        with torch.no_grad():
            for part in parts[1:]:
                torch._foreach_add_(mean, part)
            torch._foreach_div_(mean, float(self._workers))
        for weight, gradient in zip(self._weights, mean, strict=True):
            weight.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


_table: list[Table] = []  # one, in the server's process


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def exchange(rank: int, gradients: Sequence[Tensor]) -> torch.futures.Future[list[Tensor]]:
    """Runs on the server, called by worker `rank`."""
    return _table[0].exchange(rank, gradients)


def serve(setup: Setup) -> None:
    """The server's process: never returns, for the benchmark ends it."""
    _table.append(Table(setup))
    _join(setup, SERVER, setup.workers)
    threading.Event().wait()


def join(setup: Setup) -> None:
    """Be a worker."""
    _join(setup, f"worker{setup.rank}", setup.rank)


def rpc_step(model: Preset, rank: int) -> Step:
    """A worker's step: backward, one call, and the answer is the model."""
    weights = list(model.weights)

    def step(number: int) -> None:
        model(number % SETS).backward()
        fresh = rpc.rpc_sync(SERVER, exchange, args=(rank, [weight.grad for weight in weights]))
        for weight, value in zip(weights, fresh, strict=True):
            weight.data, weight.grad = value, None

    return step


def _join(setup: Setup, name: str, rank: int) -> None:
    transports, channels = TRANSPORTS.get(setup.transport, (None, None))
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=THREADS,
        rpc_timeout=WAIT_SECONDS,
        init_method=f"file://{setup.meeting}",
        _transports=transports,
        _channels=channels,
    )
    rpc.init_rpc(name, rank=rank, world_size=setup.workers + 1, rpc_backend_options=options)  # type: ignore[no-untyped-call]
