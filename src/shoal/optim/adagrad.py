"""Adagrad (Duchi, Hazan and Singer 2011), as torch.optim.Adagrad defines it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.kernel import element
from shoal.optim.rule import Constants, Formula, Moved, Rule, Value, Values, pack


@dataclass(frozen=True)
class Adagrad(Rule):
    """sum += g**2; p -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(sum) + eps).

    The sum starts at initial_accumulator_value; weight_decay adds weight_decay * p to the gradient.
    """

    name = "adagrad"

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    @property
    def states(self) -> tuple[str, ...]:
        return ("sum",)

    def constants(self, step: int, rate: float) -> Constants:
        start = self.initial_accumulator_value if step == 1 else 0.0  # state arrays begin as zeros
        return pack(rate / (1 + (step - 1) * self.lr_decay), self.weight_decay, start, self.eps)

    @property
    def formula(self) -> Formula:
        return _adagrad


@element
def _adagrad(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, weight_decay, start, eps = constants
    (total,) = states
    g = g + weight_decay * p
    s = (total + start) + g * g
    return p - rate * g / (np.sqrt(s) + eps), (s,)
