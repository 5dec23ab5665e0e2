"""From what users hand to an optimizer to the table that the servers hold.

Takes all that torch's optimizers take (parameters, (name, parameter) pairs, groups with settings of
their own) and a Module besides; refuses, by the parameter's name, what a table cannot hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.adapters.torch.tensors import WIRE_DTYPES
from shoal.codec.codec import PULLS, PUSHES
from shoal.errors import ConfigurationError
from shoal.optim import Rule
from shoal.optim.registry import RULES
from shoal.vocabulary import TensorSpec

CODECS = {"push": PUSHES, "pull": PULLS}  # what a group may set, and to what

Parameters = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Named:
    """One parameter, the name it goes by, the index of its group, and the codecs of its gradients and of its changes
    ("": none)."""

    name: str
    parameter: Tensor
    group: int
    push: str = ""
    pull: str = ""

    @property
    def spec(self) -> TensorSpec:
        dtype = WIRE_DTYPES[self.parameter.dtype]
        return TensorSpec(self.name, tuple(self.parameter.shape), dtype, self.group, self.push, self.pull)


@dataclass(frozen=True)
class Group:
    """Parameters that share settings, and the rule with those settings."""

    members: tuple[Named, ...]
    rule: Rule


def settings_of(rule: Rule) -> dict[str, Any]:
    """What a parameter group may set, by torch's names (betas is one), with the rule's values."""
    return {item.name: getattr(rule, item.name) for item in fields(rule) if item.name != "clip_norm"}


def groups_of(params: Parameters, rule: Rule, push: str = "", pull: str = "") -> tuple[Group, ...]:
    """The parameter groups in order, each parameter once, with unique names.

    push, pull: the codecs of gradients and of changes where a group has no "push" or "pull" of its own.

    Raises ConfigurationError for no parameters at all, a parameter in two groups, a setting that the
    rule does not know or a value that it does not take, and a codec that nobody knows.
    """
    _check_rule(rule)
    if isinstance(params, Tensor):
        raise ConfigurationError("ps.optimizer(...) takes a module or an iterable of parameters, not one tensor")
    entries: list[Any] = [params] if isinstance(params, nn.Module) else list(params)
    if not entries:
        raise ConfigurationError("ps.optimizer(...) got no parameters: the iterable is empty (a generator used up?)")
    if not isinstance(entries[0], dict):
        entries = [{"params": params if isinstance(params, nn.Module) else entries}]
    listed = [_members(index, entry, {"push": push, "pull": pull}) for index, entry in enumerate(entries)]
    _refuse_shared(listed)
    names = Counter(item.name for group in listed for item in group)
    return tuple(
        Group(
            tuple(item if names[item.name] == 1 else _qualified(item) for item in group),
            _group_rule(index, entry, rule),
        )
        for index, (entry, group) in enumerate(zip(entries, listed, strict=True))
    )


def trainable(groups: Iterable[Group]) -> tuple[Named, ...]:
    """The parameters that make the table: those that require gradients, in order, each one checked."""
    found = tuple(item for group in groups for item in group.members if item.parameter.requires_grad)
    if not found:
        raise ConfigurationError("no parameter given to ps.optimizer(...) requires gradients: nothing to train")
    for item in found:
        _check(item)
    return found


def _check_rule(rule: object) -> None:
    if isinstance(rule, Rule):
        return
    kind = rule if isinstance(rule, type) else type(rule)
    if kind is rule and issubclass(kind, Rule):
        raise ConfigurationError(f"rule={kind.__name__} is a class, not a rule: give shoal.{kind.__name__}(lr=...)")
    known = {name.lower(): name for name in (item.__name__ for item in RULES.values())}
    example = f"shoal.{known.get(kind.__name__.lower(), 'AdamW')}(lr=3e-4)"
    shown = repr(rule) if isinstance(rule, str) else f"{kind.__module__}.{kind.__name__}"
    raise ConfigurationError(
        f"rule={shown} is no rule that servers can apply: give {example}, "
        f"the second argument of ps.optimizer(model, {example})"
    )


def _members(index: int, entry: Any, codecs: dict[str, str]) -> tuple[Named, ...]:
    if not isinstance(entry, dict) or "params" not in entry:
        raise ConfigurationError(f"parameter group {index} is not a dict with 'params': {type(entry).__name__}")
    codecs = {way: entry.get(way, default) for way, default in codecs.items()}
    for way, known in CODECS.items():
        if codecs[way] not in ("", *known):
            raise ConfigurationError(
                f"parameter group {index}: {way}={codecs[way]!r} is no codec; known: {', '.join(known)}"
            )
    given = entry["params"]
    if isinstance(given, nn.Module):
        items: list[Any] = list(given.named_parameters())
    else:
        items = [given] if isinstance(given, Tensor) else list(given)
    members: dict[int, Named] = {}  # a tied weight that is listed twice counts once
    for position, item in enumerate(items):
        name, parameter = item if isinstance(item, tuple) else (f"group{index}.{position}", item)
        if not isinstance(parameter, Tensor):
            raise ConfigurationError(f"parameter group {index} holds a {type(parameter).__name__}, not a tensor")
        members.setdefault(id(parameter), Named(name, parameter, index, **codecs))
    return tuple(members.values())


def _refuse_shared(groups: list[tuple[Named, ...]]) -> None:
    seen: dict[int, Named] = {}
    for item in (item for group in groups for item in group):
        first = seen.setdefault(id(item.parameter), item)
        if first is not item:
            raise ConfigurationError(
                f"parameter {item.name!r} of group {item.group} is {first.name!r} of group {first.group} again; "
                "a tied weight belongs to one group"
            )


def _qualified(item: Named) -> Named:
    return replace(item, name=f"group{item.group}.{item.name}")


def _group_rule(index: int, entry: dict[str, Any], rule: Rule) -> Rule:
    own = {name: value for name, value in entry.items() if name not in ("params", *CODECS)}
    known = settings_of(rule)
    for name, value in own.items():
        if name not in known:
            raise ConfigurationError(
                f"parameter group {index} sets {name!r}, which {type(rule).__name__} does not have for a group; "
                f"it has {', '.join(known)}"
            )
        own[name] = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return replace(rule, **own)


def _check(item: Named) -> None:
    parameter = item.parameter
    who = f"parameter {item.name!r}"
    if item.pull and parameter.dtype is not torch.float32:
        raise ConfigurationError(
            f"{who} is {parameter.dtype}, and pull={item.pull!r} is for float32: such parameters come back in as few "
            f'bytes as they have; give their group "pull": ""'
        )
    if any(kind.__name__ == "DTensor" for kind in type(parameter).__mro__):
        raise ConfigurationError(
            f"{who} is a DTensor, and a table takes whole parameters: give the module itself that fully_shard dealt, "
            f"as in ps.optimizer(model, shoal.AdamW(...)) without LocalSteps (docs/groups.md)"
        )
    if nn.parameter.is_lazy(parameter):
        raise ConfigurationError(f"{who} has no shape yet; run one forward pass before ps.optimizer(...)")
    if parameter.layout != torch.strided:
        raise ConfigurationError(f"{who} is {parameter.layout}; tables are dense: use parameter.to_dense()")
    if parameter.device.type == "meta":
        raise ConfigurationError(f"{who} is on the meta device, without values; use model.to_empty() and initialise")
    if not parameter.is_leaf:
        raise ConfigurationError(f"{who} is computed from other tensors; give the optimizer the leaf it comes from")
    if parameter.dtype not in WIRE_DTYPES:
        raise ConfigurationError(
            f"{who} is {parameter.dtype}; tables hold {', '.join(WIRE_DTYPES.values())}: call model.float() first"
            + (" and keep real and imaginary parts apart" if parameter.is_complex() else "")
        )
