"""Lion (Chen et al. 2023, arXiv 2302.06675, program 1): the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.kernel import Floats, kernel
from shoal.optim.rule import Rule, pack


@dataclass(frozen=True)
class Lion(Rule):
    """p -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * p); m = beta2 * m + (1 - beta2) * g.

    The sign of 0 is 0. The paper advises a learning rate 3 to 10 times below AdamW's, and a weight
    decay as many times above.
    """

    name = "lion"

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    @property
    def states(self) -> tuple[str, ...]:
        return ("exp_avg",)

    def constants(self, step: int, rate: float) -> Floats:
        beta1, beta2 = self.betas
        return pack(rate, 1 - rate * self.weight_decay, beta1, 1 - beta1, beta2, 1 - beta2)

    def update(self, parameters: Floats, gradient: Floats, states: Sequence[Floats], constants: Floats) -> None:
        _lion(parameters, gradient, states[0], constants)


@kernel
def _lion(parameters: Floats, gradient: Floats, first: Floats, constants: Floats) -> None:
    rate, shrink, beta1, gain1 = constants[0], constants[1], constants[2], constants[3]
    beta2, gain2 = constants[4], constants[5]
    for i in range(parameters.size):
        g, m = gradient[i], first[i]
        parameters[i] = shrink * parameters[i] - rate * np.sign(beta1 * m + gain1 * g)
        first[i] = beta2 * m + gain2 * g
