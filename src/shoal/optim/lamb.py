"""LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2): Adam's step, scaled per tensor to its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shoal.kernel import element
from shoal.optim.rule import Constants, Direction, Formula, Moved, Rule, Value, Values, pack


@dataclass(frozen=True)
class LAMB(Rule):
    """u = m' / (sqrt(v') + eps) + weight_decay * p; p -= lr * ||p|| / ||u|| * u, norms over a tensor.

    The ratio is 1 where either norm is 0. It reaches the formula as part of the learning rate, since u
    does not depend on it.
    """

    name = "lamb"
    phases = ("trust",)

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 1e-2

    @property
    def states(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def constants(self, step: int, rate: float) -> Constants:
        beta1, beta2 = self.betas
        return pack(
            rate,
            1 - beta1**step,
            math.sqrt(1 - beta2**step),
            1 - beta1,
            beta2,
            1 - beta2,
            self.eps,
            self.weight_decay,
        )

    @property
    def formula(self) -> Formula:
        return _lamb

    @property
    def direction(self) -> Direction:
        return _direction


@element
def _lamb(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    u, kept = _direction(p, g, states, constants)
    return p - constants[0] * u, kept


@element
def _direction(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    _, correction1, correction2, gain1, beta2, gain2, eps, weight_decay = constants
    first, second = states
    m = first + gain1 * (g - first)
    v = beta2 * second + gain2 * (g * g)
    return (m / correction1) / (np.sqrt(v) / correction2 + eps) + weight_decay * p, (m, v)
