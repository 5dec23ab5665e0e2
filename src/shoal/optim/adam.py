"""Adam (Kingma and Ba 2014, arXiv 1412.6980) and AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101).

Both as torch.optim defines them, without amsgrad. They share one kernel: the two differ in whether
weight decay joins the gradient or shrinks the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal.kernel import Floats, kernel
from shoal.optim.rule import Rule, pack


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

    def constants(self, step: int, rate: float) -> Floats:
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

    def update(self, parameters: Floats, gradient: Floats, states: Sequence[Floats], constants: Floats) -> None:
        _adam(parameters, gradient, states[0], states[1], constants)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay is decoupled: p *= 1 - lr * weight_decay, beside the update."""

    name = "adamw"
    decoupled = True

    weight_decay: float = 1e-2


@kernel
def _adam(parameters: Floats, gradient: Floats, first: Floats, second: Floats, constants: Floats) -> None:
    rate, correction, gain1, beta2 = constants[0], constants[1], constants[2], constants[3]
    gain2, eps, into_gradient, shrink = constants[4], constants[5], constants[6], constants[7]
    for i in range(parameters.size):
        p = parameters[i]
        g = gradient[i] + into_gradient * p
        m = first[i] + gain1 * (g - first[i])
        v = beta2 * second[i] + gain2 * (g * g)
        first[i] = m
        second[i] = v
        parameters[i] = shrink * p - rate * m / (np.sqrt(v) / correction + eps)
