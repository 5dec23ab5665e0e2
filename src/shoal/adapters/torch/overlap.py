"""Forward goes on module by module while the rest of a step's parameters are still on their way.

step() returns once the contribution is ready. From then on each module of the model waits, before its
own forward, for its own parameters; whatever reads or writes them otherwise has to wait() first.
state_dict() of the model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from shoal.adapters.torch.binding import Binding
from shoal.adapters.torch.groups import Named
from shoal.runtime.worker import Worker


class Overlap:
    """The waiting of one model's modules. handles: of its hooks, to be removed with the optimizer."""

    def __init__(self, module: nn.Module, members: Sequence[Named], worker: Worker, binding: Binding) -> None:
        self._worker, self._binding = worker, binding
        self._under_way = False  # a step was begun, and not waited for
        index_of = {id(item.parameter): index for index, item in enumerate(members)}
        self.handles: list[Any] = []
        for part in module.modules():
            own = [index_of[id(p)] for p in part.parameters(recurse=False) if id(p) in index_of]
            if own:
                self.handles.append(part.register_forward_pre_hook(self._before(own)))
        whole = module.register_state_dict_pre_hook(lambda *_: self.wait())  # type: ignore[no-untyped-call]
        self.handles.append(whole)

    def begin(self, rates: Sequence[float], multiplier: float, void: bool, samples: int | None) -> None:
        """Make the contribution ready; return when its gradients may be changed."""
        self._worker.begin_step(rates, multiplier, void, samples)
        self._under_way = True
        self._worker.await_staged()

    def wait(self) -> None:
        """Return with all parameters of the last step in place."""
        if self._under_way:
            self._worker.finish_step()
            self._under_way = False
            self._binding.refresh(self._worker.version)

    def _before(self, own: Sequence[int]) -> Any:
        def hook(*_: object) -> None:
            if not self._under_way:
                return
            self._worker.await_tensors(own)
            if self._worker.stepping:
                self._binding.arrive(own)
            else:
                self.wait()

        return hook
