"""Adagrad (Duchi, Hazan and Singer 2011), as torch.optim.Adagrad defines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.kernel import Floats, kernel
from shoal.optim.rule import Rule, pack


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

    def constants(self, step: int, rate: float) -> Floats:
        start = self.initial_accumulator_value if step == 1 else 0.0  # state arrays begin as zeros
        return pack(rate / (1 + (step - 1) * self.lr_decay), self.weight_decay, start, self.eps)

    def update(self, parameters: Floats, gradient: Floats, states: Sequence[Floats], constants: Floats) -> None:
        _adagrad(parameters, gradient, states[0], constants)


@kernel
def _adagrad(parameters: Floats, gradient: Floats, total: Floats, constants: Floats) -> None:
    rate, weight_decay, start, eps = constants[0], constants[1], constants[2], constants[3]
    for i in range(parameters.size):
        g = gradient[i] + weight_decay * parameters[i]
        s = (total[i] + start) + g * g
        total[i] = s
        parameters[i] -= rate * g / (np.sqrt(s) + eps)
