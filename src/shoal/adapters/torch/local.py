"""Local steps: a worker takes `every` steps on its own, then all combine what they came to.

DiLoCo (Douillard et al., arXiv 2311.08105, algorithm 1): the inner optimizer moves the model's parameters; every
H-th step the difference between the global parameters and the worker's, the outer gradient, is pushed, and the
servers' rule takes one step along its mean: Delta = mean(global - local), m = mu m + Delta,
global -= eta (Delta + mu m) (Nesterov). The next window begins from the global parameters; the inner
optimizer's state stays the worker's own.

Streaming DiLoCo (Douillard et al., arXiv 2501.18512, algorithm 2) does so for one fragment of the parameters at a
time, one each H / P steps: Delta_p leaves at step t, and at step t + tau the outcome is blended in,
local_p = alpha local_p + (1 - alpha) global_p. Which fragment's turn it is the clock says, so whoever joins late sends
the one that the others send.

Decoupled DiLoCo (arXiv 2604.21428) has no step wait: a worker's window goes on until what it pushed before is back, and
what it came to meanwhile is carried over, local_p = global_p + (local_p - what left), as the beginning of its next
window. Nothing that a worker did is lost for that another was slow. The carrying over is ours; the paper overwrites.

Here the global parameters are parameters of their own (anchors), of an ordinary Shoal optimizer whose gradients
are the differences: whatever holds for gradients, codecs and replicas among it, holds for them. Only the fragment
whose turn it is has a gradient; a block without one keeps its state, momentum and step count included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.adapters.local_steps import LocalSteps, dealt
from shoal.adapters.torch.binding import binding_of
from shoal.adapters.torch.collective import Ranks, process_group_of
from shoal.adapters.torch.groups import Named, Parameters, groups_of, trainable
from shoal.adapters.torch.optimizer import Optimizer
from shoal.errors import ConfigurationError
from shoal.runtime.worker import Worker
from shoal.vocabulary import MEAN, TOKENS


class LocalOptimizer(torch.optim.Optimizer):
    """The inner optimizer, with every H-th step followed by a synchronisation, of a fragment every H / P-th.

    Its parameter groups and state are the inner optimizer's: schedulers and zero_grad() work on them. outer: the
    Shoal optimizer of the global parameters; its groups' "lr" is the outer rate.
    """

    def __init__(
        self,
        worker: Worker,
        params: Parameters,
        local: LocalSteps,
        push: str = "",
        pull: str = "",
        group: Any = None,
    ) -> None:
        """Declare the table of the global parameters, and begin from their initial values.

        group: as of optimizer(): its ranks average their gradients in every step, and so take the same steps; each
        exchanges its part of the outer gradient with the servers.
        Raises ConfigurationError if the inner optimizer is none, or moves other parameters than those given, and
        what Optimizer raises.
        """
        inner = _inner(local.inner)
        params, ranks, averages = process_group_of(params, group)
        if ranks is not None and (local.scaled or local.decoupled or local.merge == "radial"):
            raise ConfigurationError(
                "LocalSteps with scaled=True, merge='radial' or Decoupled is for workers that are alone: the ranks "
                "of a group take the same steps, and none has all of a parameter; leave it out in a group"
            )
        self._members = trainable(groups_of(params, local.rule, push, pull))
        _check_alike(self._members, inner)
        self._declared = False
        super().__init__([item.parameter for item in self._members], inner.defaults)
        self._declared = True
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults
        self.inner, self.local = inner, local
        self._fragments = dealt([item.parameter.numel() for item in self._members], local.fragments)
        self._every_fragment = frozenset(range(local.fragments))
        self._taken = 0  # steps since a fragment left
        self._ahead: frozenset[int] = frozenset()  # fragments that took steps since they left
        self._under_way: frozenset[int] | None = None  # fragments that left and have not come back
        self._left_at = 0  # the clock when they left
        self._left: dict[int, Tensor] = {}  # by tensor: what it was then, where steps go on from what comes back
        self._anchors = [torch.nn.Parameter(item.parameter.detach().clone()) for item in self._members]
        self.outer = Optimizer(
            worker,
            _groups(self._members, self._anchors),
            local.rule,
            sync=local.sync,
            reduction=TOKENS if local.decoupled else MEAN,
            radial=_radial(params, self._members) if local.merge == "radial" else (),
            group=ranks,
            averaged=True,
        )
        # What this worker's steps began from. Anchors may be newer: they come whole, fragments are taken in turn.
        self._begun_from = [anchor.detach().clone() for anchor in self._anchors]
        binding = binding_of(worker)
        assert binding is not None, "the outer optimizer has made it"
        gradients = [item.parameter for item in self._members]
        self._ranks = None if ranks is None or averages else Ranks(worker, ranks, gradients)
        binding.every = binding.steps = local.stride
        binding.scaled = local.scaled
        self._worker, self._binding = worker, binding
        self._take(self._every_fragment, mix=0.0)
        if local.harm:
            warnings.warn(local.harm, stacklevel=3)

    @property
    def clock(self) -> int:
        """The round this worker is in, one for each fragment that leaves, counted over the whole job."""
        return self.outer.clock

    @property
    def taken(self) -> int:
        """Steps since a fragment left."""
        return self._taken

    @property
    def version(self) -> int:
        """The version (number of commits) of the global parameters that came last."""
        return self.outer.version

    # torch types step() by overloads that no subclass of its own follows either.
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the inner optimizer. When a fragment's turn has come, push its outer gradients; when what was
        pushed is due, wait for the outcome (raises as Optimizer.step does) and take it; decoupled, do not wait."""
        if self._ranks is not None:
            if closure is not None:
                raise ConfigurationError("step(closure) is for workers that are alone: call backward() before step()")
            self._ranks.average()
        loss = self.inner.step(closure) if closure is not None else self.inner.step()
        self._taken += 1
        self._ahead = self._every_fragment
        full = self._taken >= self._binding.steps
        due = full or self._taken >= self.local.overlap
        # What ps.loader leases is a window's: it has to leave before there is more.
        waits = not self.local.decoupled or (full and self._worker.leased > 0)
        if self._under_way is not None and due and (waits or self.outer.arrived):
            self._come_back()
        if full and self._under_way is None:
            self._leave(frozenset({self._turn(self.clock)}))
        return loss

    def synchronise(self) -> None:
        """End the window here, however many steps it had, all fragments at once; the model's parameters are then the
        global ones. At the end of training: else these steps count for nothing."""
        if self._under_way is not None:
            self._come_back()
        if self._ahead:
            self._leave(self._ahead)
        if self._under_way is not None:
            self._come_back()
        self._take(self._every_fragment, mix=0.0)

    def served(self) -> list[Tensor]:
        """Copies of the global parameters as they came last, in the order of the model's; a fragment that is under way
        is waited for, though not taken before its step."""
        self.outer.wait()
        return [anchor.detach().clone() for anchor in self._anchors]

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

    # --- helpers ----------------------------------------------------------------------------------

    def _turn(self, clock: int) -> int:
        """The fragment that leaves at the end of this round."""
        return (clock - 1) % self.local.fragments

    def _leave(self, fragments: frozenset[int]) -> None:
        """Push the outer gradients of these fragments, and begin to combine them with the others'."""
        with torch.no_grad():
            for index in self._indices(fragments):
                local = self._members[index].parameter.detach()
                self._anchors[index].grad = self._begun_from[index] - local
                if self.local.decoupled:
                    self._left[index] = local.clone()
        steps = max(1, self._taken)
        samples = None if self._worker.takes_leases else steps  # where there are no leases
        self._under_way, self._left_at, self._taken = fragments, self.clock, 0
        self._ahead -= fragments
        self.outer.begin_step(samples, steps)
        self.outer.zero_grad()
        if not self.local.overlap and not self.local.decoupled:
            self._come_back()

    def _come_back(self) -> None:
        """Wait for the outcome and take it. A worker whose contribution came too late (quorum) has missed rounds: it
        takes those fragments, too."""
        assert self._under_way is not None
        self.outer.wait()
        missed = (self._turn(clock) for clock in range(self._left_at + 1, self.clock))
        fragments, self._under_way = self._under_way.union(missed), None
        self._take(fragments, self.local.mix)
        self._left.clear()
        if not self._worker.takes_leases:  # else the window that has begun is as long as what was leased for it
            pace = self._worker.pace if self.local.scaled else 1.0
            self._binding.steps = max(1, int(self.local.stride * pace))

    def _take(self, fragments: Iterable[int], mix: float) -> None:
        """local = mix local + (1 - mix) global, and steps count from the global ones; what was done since a tensor left
        is added to these first."""
        with torch.no_grad():
            for index in self._indices(fragments):
                local, anchor = self._members[index].parameter, self._anchors[index]
                came = anchor + (local - self._left[index]) if index in self._left else anchor
                if mix:
                    local.lerp_(came, 1 - mix)
                else:
                    local.copy_(came)
                self._begun_from[index].copy_(anchor)

    def _indices(self, fragments: Iterable[int]) -> list[int]:
        return [index for fragment in sorted(fragments) for index in self._fragments[fragment]]


def _groups(members: Sequence[Named], anchors: Sequence[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The parameter groups of the global parameters, named as the model's."""
    found: dict[int, dict[str, Any]] = {}
    for item, anchor in zip(members, anchors, strict=True):
        group = found.setdefault(item.group, {"params": [], "push": item.push, "pull": item.pull})
        group["params"].append((item.name, anchor))
    return list(found.values())


def _radial(params: Parameters, members: Sequence[Named]) -> list[str]:
    """All but embeddings, by name."""
    modules = params.modules() if isinstance(params, nn.Module) else ()
    plain = {id(module.weight) for module in modules if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    return [item.name for item in members if id(item.parameter) not in plain]


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
