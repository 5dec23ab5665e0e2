"""Local steps: a worker takes `every` steps on its own, then all combine what they came to.

DiLoCo (Douillard et al., arXiv 2311.08105, algorithm 1): the inner optimizer moves the model's parameters; every
H-th step the difference between the global parameters and the worker's, the outer gradient, is pushed, and the
servers' rule takes one step along its mean: Delta = mean(global - local), m = mu m + Delta,
global -= eta (Delta + mu m) (Nesterov). The next window begins from the global parameters; the inner
optimizer's state stays the worker's own.

Here the global parameters are parameters of their own (anchors), of an ordinary Shoal optimizer whose gradients
are the differences: whatever holds for gradients, codecs and replicas among it, holds for them. On one host the
anchors are the servers' own memory, and cost a worker nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.adapters.local_steps import FULL_WINDOW, LocalSteps
from shoal.adapters.torch.binding import binding_of
from shoal.adapters.torch.groups import Named, Parameters, groups_of, trainable
from shoal.adapters.torch.optimizer import Optimizer, optimizer
from shoal.errors import ConfigurationError
from shoal.runtime.worker import Worker


class LocalOptimizer(torch.optim.Optimizer):
    """The inner optimizer, with every `local.every`-th step followed by a synchronisation.

    Its parameter groups and state are the inner optimizer's: schedulers and zero_grad() work on them. outer: the
    Shoal optimizer of the global parameters; its groups' "lr" is the outer rate.
    """

    def __init__(self, worker: Worker, params: Parameters, local: LocalSteps, push: str = "", pull: str = "") -> None:
        """Declare the table of the global parameters, and begin from their initial values.

        Raises ConfigurationError if the inner optimizer is none, or moves other parameters than those given, and
        what Optimizer raises.
        """
        inner = _inner(local.inner)
        self._members = trainable(groups_of(params, local.rule, push, pull))
        _check_alike(self._members, inner)
        self._declared = False
        super().__init__([item.parameter for item in self._members], inner.defaults)
        self._declared = True
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults
        self.inner, self.local, self._taken = inner, local, 0
        self._anchors = [torch.nn.Parameter(item.parameter.detach().clone()) for item in self._members]
        self.outer = optimizer(worker, _groups(self._members, self._anchors), local.rule)
        binding = binding_of(worker)
        assert binding is not None, "the outer optimizer has made it"
        binding.every = local.every
        self._take_over()
        if local.harmful and not local.rate_rule:
            warnings.warn(
                f"LocalSteps(every={local.every}, rate_rule=False) with outer momentum is known to harm below about "
                f"{FULL_WINDOW} steps; take more steps, or leave the rate rule on",
                stacklevel=3,
            )

    @property
    def clock(self) -> int:
        """The window this worker is in, counted over the whole job."""
        return self.outer.clock

    @property
    def version(self) -> int:
        """The version (number of commits) of the global parameters that this window began from."""
        return self.outer.version

    # torch types step() by overloads that no subclass of its own follows either.
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the inner optimizer; after the last of a window, combine with the others (raises as
        Optimizer.step does) and begin the next from the global parameters."""
        loss = self.inner.step(closure) if closure is not None else self.inner.step()
        self._taken += 1
        if self._taken >= self.local.every:
            self.synchronise()
        return loss

    def synchronise(self) -> None:
        """End the window here, however many steps it had. At the end of training: else its steps count for nothing."""
        if not self._taken:
            return
        self._taken = 0
        with torch.no_grad():
            for anchor, item in zip(self._anchors, self._members, strict=True):
                anchor.grad = anchor.detach() - item.parameter.detach()
        self.outer.step()
        self.outer.zero_grad()
        self._take_over()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, this worker's own."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: the table is declared once, before training."""
        if self._declared:
            raise ConfigurationError("the table is declared once: give all parameters to the inner optimizer at once")
        super().add_param_group(param_group)

    def _take_over(self) -> None:
        """The model's parameters are the global ones again."""
        with torch.no_grad():
            for anchor, item in zip(self._anchors, self._members, strict=True):
                item.parameter.copy_(anchor)


def _groups(members: Sequence[Named], anchors: Sequence[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The parameter groups of the global parameters, named as the model's."""
    found: dict[int, dict[str, Any]] = {}
    for item, anchor in zip(members, anchors, strict=True):
        group = found.setdefault(item.group, {"params": [], "push": item.push, "pull": item.pull})
        group["params"].append((item.name, anchor))
    return list(found.values())


def _inner(inner: object) -> torch.optim.Optimizer:
    if isinstance(inner, Optimizer | LocalOptimizer) or not isinstance(inner, torch.optim.Optimizer):
        raise ConfigurationError(
            f"LocalSteps(inner=...) takes an optimizer of torch over the model's parameters, such as "
            f"torch.optim.AdamW(model.parameters(), lr=1e-3), not {type(inner).__name__}"
        )
    return inner


def _check_alike(members: tuple[Named, ...], inner: torch.optim.Optimizer) -> None:
    moved: dict[int, Tensor] = {id(item): item for group in inner.param_groups for item in group["params"]}
    left = [item.name for item in members if id(item.parameter) not in moved]
    known = {id(item.parameter) for item in members}
    strange = sum(item.requires_grad and key not in known for key, item in moved.items())
    if left or strange:
        what = f"does not move {left[0]!r}" if left else f"moves {strange} parameters that ps.optimizer(...) lacks"
        raise ConfigurationError(f"the inner optimizer {what}: give both the same parameters, such as the module's")
