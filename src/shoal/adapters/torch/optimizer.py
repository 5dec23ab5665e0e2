"""A torch.optim.Optimizer whose state and arithmetic live on the servers.

What a user of torch's optimizers does works on it: learning-rate schedulers, parameter groups,
GradScaler, closures, gradient accumulation by several backwards, state_dict. step() hands in this
worker's gradients, waits as the policy says, and returns with fresh parameters in place.
"""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from shoal.adapters.torch.binding import Binding, bind
from shoal.adapters.torch.collective import Collective, process_group_of
from shoal.adapters.torch.gradients import Outbox, Slot
from shoal.adapters.torch.groups import Group, Named, Parameters, groups_of, settings_of, trainable
from shoal.adapters.torch.overlap import Overlap
from shoal.errors import ConfigurationError, NonFiniteGradientError
from shoal.optim import Rule
from shoal.policy import Policy, Sync, checked, harm
from shoal.runtime.worker import Worker
from shoal.vocabulary import MEAN, TOKENS, TableSpec

NonFinite = Literal["refuse", "skip", "allow"]
Reduction = Literal["mean", "sum"]

DEFAULT_POLICY: Policy = Sync()

logger = logging.getLogger(__name__)


def optimizer(
    worker: Worker,
    params: Parameters,
    rule: Rule,
    *,
    sync: Policy = DEFAULT_POLICY,
    reduction: str = "mean",
    nonfinite: NonFinite = "refuse",
    overlap: bool = False,
    push: str = "",
    pull: str = "",
    group: Any = None,
    averaged: bool = False,
) -> Optimizer:
    """Declare the table of these parameters, wait for their initial values, and return its optimizer.

    params: a Module, or what torch's optimizers take: parameters, (name, parameter) pairs, or dicts
        {"params": ..., setting: value}. float32, bfloat16 or float16, any shape and layout, on CPU or
        CUDA. Those that do not require gradients (and a module's buffers) stay the worker's own: no
        server holds them, so give every worker the same.
    rule: a value of shoal.optim, such as AdamW(lr=3e-4, clip_norm=1.0).
    sync: the consistency policy: Sync(), Sync(quorum=0.9), Bounded(staleness=3), Async() or Decoupled(). Warns where
        the rule is known to suffer from it (docs/staleness.md).
    reduction: how contributions combine: "mean" weighs each by its share of the samples (for losses
        that are means), "sum" adds them up.
    nonfinite: what to do with a gradient that holds NaN or infinity: "refuse" raises
        NonFiniteGradientError, "skip" leaves this worker's contribution out of the commit, "allow"
        lets it pass.
    overlap: let step() return before fresh parameters are in place; each module of the model waits for
        its own before its forward. Needs the Module itself as params, and Sync(): only there do parameters
        stay the same until this worker's next contribution. Before you use parameters in any other way than
        by calling the module or its state_dict(), call wait().
    push: the codec in which gradients travel: "bfloat16", "float16", "int8", "int4" and "e3m0" (4 bits), "2bit",
        "sign" (1 bit), "topk" or "randomk" (1 element in 64), or "powersgd2" (matrices, as products of rank 1, 2, 4 or
        8); by default they are as wide as their parameters. A parameter group may set its own. What those from "2bit"
        on lose is added to the next gradient (error feedback, see docs/codecs.md).
    pull: the codec in which changes of float32 parameters travel back: "bfloat16" to "randomk" of these. What it loses
        is added to the next change, on the servers, and every worker computes on the same parameters. Such a table
        shares no memory between processes of one host: it is for links that are slower. A group may set its own.
    group: the torch.distributed process group that trains as one worker (docs/groups.md): every rank makes its
        optimizer with it, and calls step() when the others do. Gradients are averaged in the group, weighed by
        samples, and each rank exchanges its part of them with the servers. A DistributedDataParallel module as
        params brings its group along, and has averaged its gradients already; so does one that fully_shard dealt.
    averaged: the gradients are equal on all ranks of the group already, by other means than such a module.

    All parameters hold the same initial values on every worker afterwards: those of one of them.
    Raises ConfigurationError for what a table cannot hold, RefusedError if another worker's table
    differs, DeadlineError or StartupError if the job does not form.
    """
    return Optimizer(
        worker,
        params,
        rule,
        sync=sync,
        reduction=reduction,
        nonfinite=nonfinite,
        overlap=overlap,
        push=push,
        pull=pull,
        group=group,
        averaged=averaged,
    )


class Optimizer(torch.optim.Optimizer):
    """See optimizer(). The learning rate of each group is read from param_groups at every step."""

    _step_supports_amp_scaling = True  # GradScaler hands grad_scale and found_inf to step()

    def __init__(
        self,
        worker: Worker,
        params: Parameters,
        rule: Rule,
        *,
        sync: Policy = DEFAULT_POLICY,
        reduction: str = MEAN,
        nonfinite: NonFinite = "refuse",
        overlap: bool = False,
        push: str = "",
        pull: str = "",
        radial: Collection[str] = (),
        group: Any = None,
        averaged: bool = False,
    ) -> None:
        """radial: names of parameters of whose contributions lengths and directions are averaged apart."""
        policy = checked(sync)
        params, ranks, by_module = process_group_of(params, group)
        if nonfinite not in get_args(NonFinite):
            raise ConfigurationError(f"nonfinite={nonfinite!r}; known: {', '.join(get_args(NonFinite))}")
        if reduction not in (*get_args(Reduction), TOKENS):
            raise ConfigurationError(f"reduction={reduction!r}; known: {', '.join(get_args(Reduction))}")
        if overlap and not (isinstance(params, torch.nn.Module) and policy.still):
            raise ConfigurationError(
                "overlap=True needs the module itself, as in ps.optimizer(model, ..., overlap=True), and "
                "sync=shoal.Sync() without a quorum"
            )
        if ranks is not None and overlap:
            raise ConfigurationError("overlap=True is for workers that are alone: leave it out in a group")
        if ranks is None and os.environ.get("SHOAL_GROUP"):
            raise ConfigurationError(
                f"worker {worker.rank} was started as one of a group (shoal run --group): call torch.distributed."
                f"init_process_group(...), then give ps.optimizer(..., group=torch.distributed.group.WORLD)"
            )
        self._groups = groups_of(params, rule, push, pull)
        if harmful := harm(policy, rule.name):
            warnings.warn(harmful, stacklevel=4)
        self._members = trainable(self._groups)
        self._frozen = [item for group in self._groups for item in group.members if not item.parameter.requires_grad]
        self._declared = False
        super().__init__([_torch_group(group) for group in self._groups], settings_of(rule))
        self._declared = True
        self._worker, self._nonfinite = worker, nonfinite
        spec = TableSpec(
            tensors=tuple(item.spec for item in self._members),
            rule=rule.name,
            groups=tuple(group.rule.settings for group in self._groups),
            policy=policy.spec,
            clip_norm=rule.clip_norm,
            reduction=reduction,
            radial=tuple(index for index, item in enumerate(self._members) if item.name in radial),
        )
        self._collective = None if ranks is None else Collective(worker, ranks, spec, self._members)
        self._averaged = by_module or averaged
        self._binding = _join(worker, spec, self._members, self._collective)
        self._chance = self._binding.chance
        self._chance.resume()
        self._chance.remember(worker.clock)
        self._outbox = Outbox.of(worker, self._members)
        self._warned: set[str] = set()
        handles: list[RemovableHandle] = []
        for index, item in enumerate(self._members):
            if self._collective is None:  # in a group gradients leave once it has reduced them
                handles.append(_register(item.parameter, partial(self._outbox.fired, index)))
            else:
                self._outbox.slots[index].mine = index in self._collective.tensors
        self._overlap = None
        if overlap and isinstance(params, torch.nn.Module):
            self._overlap = Overlap(params, self._members, worker, self._binding)
            handles += self._overlap.handles
        weakref.finalize(self, _remove, handles)  # the model may outlive its optimizer

    @property
    def clock(self) -> int:
        """The step this worker is working on, counted over the whole job."""
        return self._worker.clock

    @property
    def version(self) -> int:
        """The version (number of commits) of the parameters in place."""
        return self._worker.version

    def wait(self) -> None:
        """Return with the parameters of the last step in place; with overlap=False step() has waited already."""
        if self._overlap is not None:
            self._overlap.wait()
        if self._binding.begun:
            self._worker.finish_step()
            self._binding.begun = False
            self._binding.refresh(self.version)

    # torch types step() by overloads that no subclass of its own follows either.
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, samples: int | None = None
    ) -> float | None:
        """Contribute the gradients, wait as the policy says, and return with fresh parameters in place.

        closure: computes the loss anew and calls backward; its value is returned, as in torch.
        samples: how many samples the gradients are over, where ps.loader does not count them.

        Without any gradient the step is still taken, as an empty contribution, so that no other
        worker waits for this one. Raises NonFiniteGradientError, ConfigurationError for parameters
        that are not as declared, and what the worker raises when the job fails.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.wait()
        self._check_settings(self.param_groups)
        self._check_parameters()
        with torch.no_grad():
            self._contribute(samples)
        return loss

    def begin_step(self, samples: int | None = None, steps: int = 1) -> None:
        """The same, but return as soon as the gradients have left; wait() ends it. Until then parameters are in motion:
        neither read nor write them. steps: of this worker's own that the samples were taken in."""
        self.wait()
        self._check_settings(self.param_groups)
        self._check_parameters()
        with torch.no_grad():
            self._contribute(samples, steps)

    @property
    def arrived(self) -> bool:
        """Whether wait() would return at once."""
        return self._worker.arrived

    def state_dict(self) -> dict[str, Any]:
        """The groups' settings. Moments are the servers': `ps.snapshot(path)` writes them down."""
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the groups' learning rates.

        Raises ConfigurationError if it carries moments (they live on the servers) or settings other
        than those the table was declared with.
        """
        if state_dict.get("state"):
            raise ConfigurationError(
                "this state_dict carries per-parameter state; Shoal keeps it on the servers: start the job from a "
                'snapshot to resume it, or load {"state": {}, "param_groups": ...} to take over the settings alone'
            )
        groups = state_dict["param_groups"]
        if len(groups) != len(self._groups):
            raise ConfigurationError(
                f"the state_dict has {len(groups)} parameter groups, the optimizer {len(self._groups)}"
            )
        self._check_settings(groups)
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only torch's own constructor may: a table is declared once (ConfigurationError)."""
        if self._declared:
            raise ConfigurationError("the table is declared: give all parameter groups to ps.optimizer(...) at once")
        super().add_param_group(param_group)

    # --- helpers ----------------------------------------------------------------------------------

    def _contribute(self, samples: int | None, begins: int = 0) -> None:
        """begins: above 0: the step is only begun, and its samples were taken in so many of this worker's own."""
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        unscaled = overflow is not None and scale is None  # scaler.unscale_ came before
        void = overflow is not None and float(overflow) > 0
        multiplier = 1.0 if scale is None else 1.0 / float(scale)
        if self._collective is not None:
            samples = self._worker.count if samples is None else samples
            void, multiplier = not self._reduce(self._collective, samples, multiplier, void), 1.0
        elif void:
            self._outbox.drop()
        else:
            self._outbox.complete(self._worker.rescale(multiplier) or unscaled)
            void = self._judge(self._outbox.not_finite())
            self._outbox.plan(unscaled)
        rates = [float(group["lr"]) for group in self.param_groups]
        if self._overlap is not None:
            self._chance.remember(self.clock + 1)  # the forward that comes before the step's end draws from it
            self._overlap.begin(rates, multiplier, void, samples)
            self._outbox.clear()
            return
        if begins:
            self._chance.remember(self.clock + 1)  # what is drawn from now on belongs to the clock that comes
            self._worker.begin_step(rates, multiplier, void, samples, begins)
            self._binding.begun = True
            self._outbox.clear()
            return
        self._worker.step(rates, multiplier, void, samples)
        self._outbox.clear()
        self._binding.refresh(self.version)
        self._chance.remember(self.clock)

    def _reduce(self, collective: Collective, samples: int, multiplier: float, void: bool) -> bool:
        """Push this rank's part of the group's gradients; False: the group contributes none. All ranks answer alike."""
        self._worker.rescale(1.0)
        if not collective.reduce(samples, multiplier, void, self._averaged):
            return False
        self._outbox.complete(unscaled=False)
        broken = self._outbox.not_finite()
        if collective.ranks.any(bool(broken)) and self._leaves_out(broken):
            self._outbox.drop()
            return False
        return True

    def _judge(self, broken: list[Slot]) -> bool:
        """Whether this contribution is to be left out; raises if it must not go on."""
        if not any(slot.sent for slot in self._outbox.slots):
            self._warn(
                "step() found no gradient on any parameter and contributes nothing; call loss.backward() before it"
            )
            return True
        return bool(broken) and self._leaves_out(broken)

    def _leaves_out(self, broken: list[Slot]) -> bool:
        """What is to be done about NaN or infinity in these gradients; none: in those of another rank of the group."""
        if self._nonfinite == "allow":
            return False
        if self._nonfinite == "skip":
            logger.warning("worker %d, clock %d: %s; skipped", self._worker.rank, self.clock, _holds_nan(broken))
            return True
        self._outbox.drop()
        rate = self.param_groups[broken[0].named.group if broken else 0]["lr"]
        raise NonFiniteGradientError(
            f"worker {self._worker.rank}, clock {self.clock}: {_holds_nan(broken)}; the step was not taken. "
            f"Look at the learning rate ({float(rate):g}) and at this batch; for float16 use torch.amp.GradScaler; "
            'ps.optimizer(..., nonfinite="skip") leaves such contributions out'
        )

    def _check_settings(self, groups: Sequence[dict[str, Any]]) -> None:
        for index, (given, group) in enumerate(zip(groups, self._groups, strict=True)):
            for name, declared in settings_of(group.rule).items():
                value = given.get(name)
                value = tuple(value) if isinstance(value, list) else value
                if value != declared and name != "lr":
                    raise ConfigurationError(
                        f"{name} of parameter group {index} is {value!r}, but the table was declared with "
                        f"{declared!r}; only lr may change (schedulers that cycle momentum: cycle_momentum=False)"
                    )

    def _check_parameters(self) -> None:
        self._binding.check()
        if self._binding.written():
            self._warn(
                "parameters were changed in place since the last step; the servers hold the parameters, so such "
                "changes do not last: load weights before ps.optimizer(...)"
            )
        for item in self._frozen:
            if item.parameter.requires_grad:
                raise ConfigurationError(
                    f"parameter {item.name!r} was frozen when the table was declared and requires gradients now; "
                    "make the optimizer while it does, and freeze it afterwards"
                )

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"worker {self._worker.rank}: {text}", stacklevel=5)


def _join(worker: Worker, spec: TableSpec, members: Sequence[Named], collective: Collective | None) -> Binding:
    """Declare the table, seed it if asked to, and return with the initial parameters in place."""
    seeds = worker.declare(spec, () if collective is None else collective.identities)
    binding = bind(worker, spec, members, collective)
    if seeds:
        worker.seed()
    worker.start()
    binding.refresh(worker.version)
    return binding


def _torch_group(group: Group) -> dict[str, Any]:
    return {"params": [item.parameter for item in group.members], **settings_of(group.rule)}


def _register(parameter: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _holds_nan(slots: list[Slot]) -> str:
    if not slots:
        return "a gradient of another rank of its group holds NaN or infinity"
    others = f" (and {len(slots) - 1} more)" if len(slots) > 1 else ""
    return f"the gradient of parameter {slots[0].named.name!r}{others} holds NaN or infinity"
