"""LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2): Adam's step, scaled per tensor to its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.kernel import Floats, kernel
from shoal.optim.rule import Rule, pack


@dataclass(frozen=True)
class LAMB(Rule):
    """u = m' / (sqrt(v') + eps) + weight_decay * p; p -= lr * ||p|| / ||u|| * u, norms over a tensor.

    The ratio is 1 where either norm is 0. It reaches update as part of the learning rate, since u
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

    def constants(self, step: int, rate: float) -> Floats:
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

    def update(self, parameters: Floats, gradient: Floats, states: Sequence[Floats], constants: Floats) -> None:
        _lamb(parameters, gradient, states[0], states[1], constants)

    def trust(
        self, parameters: Floats, gradient: Floats, states: Sequence[Floats], constants: Floats
    ) -> tuple[float, float]:
        """(sum of p**2, sum of u**2) in float64, before the update; changes nothing."""
        weights, updates = _trust(parameters, gradient, states[0], states[1], constants)
        return float(weights), float(updates)


@kernel
def _lamb(parameters: Floats, gradient: Floats, first: Floats, second: Floats, constants: Floats) -> None:
    rate, correction1, correction2, gain1 = constants[0], constants[1], constants[2], constants[3]
    beta2, gain2, eps, weight_decay = constants[4], constants[5], constants[6], constants[7]
    for i in range(parameters.size):
        p, g = parameters[i], gradient[i]
        m = first[i] + gain1 * (g - first[i])
        v = beta2 * second[i] + gain2 * (g * g)
        first[i] = m
        second[i] = v
        u = (m / correction1) / (np.sqrt(v) / correction2 + eps) + weight_decay * p
        parameters[i] = p - rate * u


@kernel
def _trust(
    parameters: Floats, gradient: Floats, first: Floats, second: Floats, constants: Floats
) -> tuple[np.float64, np.float64]:
    correction1, correction2, gain1 = constants[1], constants[2], constants[3]
    beta2, gain2, eps, weight_decay = constants[4], constants[5], constants[6], constants[7]
    weights = np.float64(0)
    updates = np.float64(0)
    for i in range(parameters.size):
        p, g = parameters[i], gradient[i]
        m = first[i] + gain1 * (g - first[i])
        v = beta2 * second[i] + gain2 * (g * g)
        u = (m / correction1) / (np.sqrt(v) / correction2 + eps) + weight_decay * p
        weights += np.float64(p) * np.float64(p)
        updates += np.float64(u) * np.float64(u)
    return weights, updates
