"""A worker without a job: one contribution a step, applied with the servers' own rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import pytest
import torch

from shoal.codec.codec import codec_for
from shoal.core.machine import Fresh
from shoal.optim.passes import fused
from shoal.optim.registry import rule_for
from shoal.vocabulary import Dataset, Lease, TableSpec

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class FakeWorker:
    """Keeps the promises of runtime.worker.Worker for a job of one, and a record of what was called."""

    def __init__(self, workers: int = 1, leases: Sequence[Lease | None] = ()) -> None:
        self.rank, self.workers, self.clock, self.version = 0, workers, 0, 0
        self.leases, self.asked = list(leases), []
        self.leased = 0  # it takes a step whenever one is due
        self.pushed: dict[int, np.ndarray] = {}  # of this attempt, as it was when pushed
        self.views: dict[int, np.ndarray] = {}
        self.pushes: list[int] = []  # tensors, over all attempts of this clock
        self.restarts = 0
        self.data_epochs = 0
        self.steps: list[dict[str, object]] = []
        self.resumed_from: str | None = None
        self.remembered: dict[int, Callable[[], bytes]] = {}  # random states, by clock

    def remembers(self, clock: int) -> bool:
        return clock in self.remembered

    def remember(self, clock: int, state: Callable[[], bytes]) -> None:
        self.remembered[clock] = state

    def declare(self, spec: TableSpec, group: object = ()) -> bool:
        self.spec = spec
        return True

    def bind(self, parameters: Sequence[np.ndarray], initial: Sequence[np.ndarray] | None = None) -> None:
        self.bound = parameters

    def parameter_memory(self, tensor: int) -> None:
        """It shares no memory."""

    def gradient_memory(self, tensor: int) -> None:
        """It shares no memory."""

    def seed(self) -> None:
        self.rules = [rule_for(self.spec.rule, settings) for settings in self.spec.groups]
        self.masters = [
            bytes_.view(DTYPES[tensor.dtype]).astype(np.float32)
            for bytes_, tensor in zip(self.bound, self.spec.tensors, strict=True)
        ]
        self.states = [
            [np.zeros(tensor.elements, np.float32) for _ in self.rules[tensor.group].states]
            for tensor in self.spec.tensors
        ]
        self.counts = [0] * len(self.masters)

    def start(self) -> Fresh:
        self.clock, self.version = 1, 1
        return Fresh(1, 1, True)

    encodes = False

    def push(self, tensor: int, gradient: np.ndarray) -> bool:
        assert gradient.dtype == np.uint8
        assert gradient.size == self.bound[tensor].size
        self.pushed[tensor], self.views[tensor] = gradient.copy(), gradient  # sends at once: the eager extreme
        self.pushes.append(tensor)
        return True

    def rescale(self, multiplier: float) -> bool:
        return False

    def restart(self) -> None:
        self.pushed.clear()
        self.restarts += 1

    def step(
        self, rates: Sequence[float], multiplier: float = 1.0, void: bool = False, samples: int | None = None
    ) -> Fresh:
        for index, view in self.views.items():
            assert index not in self.pushed or np.array_equal(view, self.pushed[index]), "changed before step()"
        pushed = [self.spec.tensors[index].name for index in sorted(self.pushed)]
        self.steps.append({"rates": rates, "multiplier": multiplier, "void": void, "pushed": pushed})
        if not void:
            self._apply(rates, multiplier)
        self.pushed, self.pushes = {}, []
        self.clock, self.version = self.clock + 1, self.version + 1
        return Fresh(self.version, self.clock, True)

    def next_data_epoch(self) -> int:
        self.data_epochs += 1
        return self.data_epochs - 1

    def lease(self, dataset: Dataset, epoch: int) -> Lease | None:
        self.asked.append((dataset, epoch))
        return self.leases.pop(0)

    def _apply(self, rates: Sequence[float], multiplier: float) -> None:
        scale = np.float32(multiplier)
        gradients = {
            index: view.view(DTYPES[self.spec.tensors[index].dtype]).astype(np.float32) * scale
            for index, view in self.pushed.items()
        }
        if self.spec.clip_norm is not None:
            norm = float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values())))
            factor = np.float32(min(1.0, self.spec.clip_norm / (norm + 1e-6)))
            gradients = {index: gradient * factor for index, gradient in gradients.items()}
        for index, gradient in gradients.items():
            tensor = self.spec.tensors[index]
            self.counts[index] += 1
            constants = self.rules[tensor.group].constants(self.counts[index], rates[tensor.group])
            passes = fused(self.rules[tensor.group], codec_for("float32"))
            alone = [(gradient.reshape(-1), np.float32(1))]
            scratch = np.empty(gradient.size, np.float32)
            passes.update(self.masters[index], self.states[index], constants, alone, np.float32(1), scratch)
            self.bound[index].view(DTYPES[tensor.dtype])[:] = self.masters[index].astype(DTYPES[tensor.dtype])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def make_worker() -> type[FakeWorker]:
    return FakeWorker
