"""What every server-side update rule keeps: frozen settings, checked at the door, and a formula for one element.

A rule is a value that the user writes (`AdamW(lr=3e-4)`) and the server rebuilds from a TableSpec.
All scalar arithmetic (bias corrections, decay factors) is done in float64 once per block and handed
over as a few float32 constants, as torch does, so a rule is nothing but its formula; the loop around
it is made in loops.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

from shoal.errors import ConfigurationError

Settings = tuple[tuple[str, float], ...]

# What a formula computes with: a float32 in a kernel; in plain Python an array of them does as well.
Value = Any
Values = tuple[Value, ...]
Constants = tuple[np.float32, ...]

# formula(parameter, gradient, states, constants) -> (new parameter, new states), all of one element.
Moved = tuple[Value, Values]
Formula = Callable[[Value, Value, Values, Constants], Moved]
# The same, but in place of the new parameter what it would move by, before learning rate and trust.
Direction = Formula


@dataclass(frozen=True)
class Range:
    """The values a setting may take: from low to high, the upper end included or not."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


RANGES = {
    "lr": Range(0),
    "lr_decay": Range(0),
    "momentum": Range(0),
    "every": Range(1),
    "share": Range(0, 1, high_open=False),
    "dampening": Range(-math.inf, low_open=True),
    "alpha": Range(0, 1, high_open=False),
    "beta1": Range(0, 1),
    "beta2": Range(0, 1),
    "eps": Range(0),
    "weight_decay": Range(0),
    "initial_accumulator_value": Range(0),
    "clip_norm": Range(0, low_open=True),
}


FLAGS = ("nesterov", "centered")  # travel as 0.0 or 1.0


@dataclass(frozen=True)
class Rule:
    """Base of the rules. ConfigurationError for a setting outside its range.

    clip_norm: the combined gradient of the whole model is scaled down to this norm, as
    torch.nn.utils.clip_grad_norm_ does; None leaves it alone.
    """

    name: ClassVar[str]
    phases: ClassVar[tuple[str, ...]] = ()  # what must be known of the whole model before the update

    lr: float = 1e-3
    clip_norm: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for setting, value in self._flat():
            if setting in FLAGS:
                continue
            if not isinstance(value, (int, float)) or value not in RANGES[setting]:
                raise ConfigurationError(
                    f"{type(self).__name__}({setting}={value!r}): {setting} must be a number in {RANGES[setting]}"
                )

    @property
    def settings(self) -> Settings:
        """All but clip_norm as (name, number), for TableSpec.groups; betas become beta1 and beta2."""
        return tuple((setting, float(value)) for setting, value in self._flat() if setting != "clip_norm")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The rule of one parameter group, from its settings (ConfigurationError for an unknown one)."""
        given = dict(settings)
        values: dict[str, float | bool | tuple[float, ...]] = {}
        for item in fields(cls):
            if item.name == "betas" and {"beta1", "beta2"} <= given.keys():
                values["betas"] = (given.pop("beta1"), given.pop("beta2"))
            elif item.name in given:
                value = given.pop(item.name)
                values[item.name] = bool(value) if item.name in FLAGS else value
        if given:
            known = ", ".join(setting for setting, _ in cls().settings)
            raise ConfigurationError(f"{cls.__name__} has no setting {min(given)!r}; it has {known}")
        return cls(**values)  # type: ignore[arg-type]

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the float32 state arrays that each block needs, in the order the formula takes them."""
        return ()

    def constants(self, step: int, rate: float) -> Constants:
        """The formula's constants at a block's step-th update (from 1) with learning rate `rate`."""
        raise NotImplementedError

    @property
    def formula(self) -> Formula:
        """What happens to one element; an element function (kernel.py) of the rule's module."""
        raise NotImplementedError

    @property
    def direction(self) -> Direction | None:
        """What the trust phase measures, for a rule that has it."""
        return None

    def _flat(self) -> list[tuple[str, Any]]:
        """The settings that are given, in order, with betas taken apart."""
        flat: list[tuple[str, Any]] = []  # users write what they like
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "betas":
                if not isinstance(value, (tuple, list)) or len(value) != 2:
                    raise ConfigurationError(
                        f"{type(self).__name__}(betas={value!r}): betas must be two numbers in {RANGES['beta1']}"
                    )
                flat += [("beta1", value[0]), ("beta2", value[1])]
            elif value is not None or item.name != "clip_norm":
                flat.append((item.name, value))
        return flat


def pack(*values: float) -> Constants:
    """Constants for a formula, each rounded once from float64 to float32."""
    return tuple(np.float32(value) for value in values)
