"""Which parameters of this process a worker refreshes, and under which policy.

Fresh parameters land in host memory while step() or lease() waits; refresh() brings them into the
model. The loader finds the binding of its worker here, for a lease may bring fresh parameters too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence

import torch

from shoal.adapters.torch.chance import Chance
from shoal.adapters.torch.collective import Collective
from shoal.adapters.torch.groups import Named
from shoal.adapters.torch.tensors import Landing
from shoal.runtime.worker import Worker
from shoal.vocabulary import PolicySpec, TableSpec

_bindings: weakref.WeakKeyDictionary[Worker, Binding] = weakref.WeakKeyDictionary()


def bind(worker: Worker, spec: TableSpec, members: Sequence[Named], collective: Collective | None) -> Binding:
    """Tell the worker where the parameters live; binding_of(worker) knows them from now on."""
    binding = Binding(spec.policy, members, worker, collective)
    landings = binding.landings
    worker.bind([landing.bytes for landing in landings], [landing.initial for landing in landings])
    _bindings[worker] = binding
    return binding


def binding_of(worker: Worker) -> Binding | None:
    """The binding of this worker's optimizer, if it has one yet."""
    return _bindings.get(worker)


class Binding:
    """The trainable parameters of one optimizer."""

    def __init__(
        self, policy: PolicySpec, members: Sequence[Named], worker: Worker, collective: Collective | None
    ) -> None:
        self.policy = policy
        self.members = members
        self.collective = collective  # of the group that has the other parts of them
        self.spread: Callable[[], None] = lambda: None  # takes what was gathered on, where that is not the end of it
        self.begun = False  # a step by begin_step() was, and is not waited for
        self.landings = [Landing(item.parameter, worker.parameter_memory(index)) for index, item in enumerate(members)]
        self.chance = Chance(worker)
        self.every = 1  # steps of the training loop in a clock, at most
        self.steps = 1  # of this clock: fewer for a slow worker, and at the end of a data epoch
        self.scaled = False
        self._worker = worker
        self._early: set[int] = set()  # members that arrived before the rest of their version
        self._spoiled = False  # parameters that lie in the servers' memory hide it behind what was written here
        self._version: int | None = None
        self._written: list[int] = []

    def check(self) -> None:
        """Raise ConfigurationError if a parameter's memory is not the one that was bound."""
        for item, landing in zip(self.members, self.landings, strict=True):
            landing.check(item.name)

    def written(self) -> bool:
        """Whether somebody else changed a parameter since the last refresh."""
        changed = self._written != [item.parameter._version for item in self.members]
        if any(landing.moves for landing in self.landings):
            # A change by way of `parameter.data` no counter shows, but the system keeps what was written apart.
            self._spoiled = self._spoiled or changed or self._worker.parameters_written()
            return self._spoiled
        return changed

    def arrive(self, members: Iterable[int]) -> None:
        """Bring what landed for these members into their parameters, before the rest of their version is there."""
        new = [index for index in members if index not in self._early]
        if new:
            self._bring(new)
            self._early.update(new)

    def refresh(self, version: int) -> None:
        """Bring what landed into the parameters, unless they hold this version already."""
        if version == self._version:
            return
        self._version = version
        if self._spoiled:
            self._worker.renew_parameters()
            self._spoiled = False
        self._bring(index for index in range(len(self.landings)) if index not in self._early)
        if self.collective is not None:
            self.collective.gather()
            self.spread()
        self._early.clear()
        self._written = [item.parameter._version for item in self.members]

    def _bring(self, members: Iterable[int]) -> None:
        with torch.no_grad():
            for index in members:
                self.landings[index].arrive()
        for device in {item.parameter.device for item in self.members if item.parameter.device.type == "cuda"}:
            torch.cuda.current_stream(device).synchronize()  # the next parameters land in the same host memory
