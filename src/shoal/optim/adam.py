"""Adam (Kingma and Ba 2014, arXiv 1412.6980) and AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101).

Both as torch.optim defines them, without amsgrad. They share one formula: the two differ in whether
weight decay joins the gradient or shrinks the parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal.kernel import element
from shoal.optim.rule import Constants, Formula, Moved, Rule, Value, Values, pack


@dataclass(frozen=True)
class Adam(Rule):
    """m and v are running means of g and g**2; p -= lr * m' / (sqrt(v') + eps), bias corrected.

    weight_decay adds weight_decay * p to the gradient.
    """

    name = "adam"
    decoupled: ClassVar[bool] = False

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def states(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def constants(self, step: int, rate: float) -> Constants:
        beta1, beta2 = self.betas
        into_gradient, shrink = (0.0, 1 - rate * self.weight_decay) if self.decoupled else (self.weight_decay, 1.0)
        return pack(
            rate / (1 - beta1**step),
            math.sqrt(1 - beta2**step),
            1 - beta1,
            beta2,
            1 - beta2,
            self.eps,
            into_gradient,
            shrink,
        )

    @property
    def formula(self) -> Formula:
        return _adam


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay is decoupled: p *= 1 - lr * weight_decay, beside the update."""

    name = "adamw"
    decoupled = True

    weight_decay: float = 1e-2


@element
def _adam(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, correction, gain1, beta2, gain2, eps, into_gradient, shrink = constants
    first, second = states
    g = g + into_gradient * p
    m = first + gain1 * (g - first)
    v = beta2 * second + gain2 * (g * g)
    return shrink * p - rate * m / (np.sqrt(v) / correction + eps), (m, v)
