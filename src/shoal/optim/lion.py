"""Lion (Chen et al. 2023, arXiv 2302.06675, program 1): the sign of an interpolated momentum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.kernel import element
from shoal.optim.rule import Constants, Formula, Moved, Rule, Value, Values, pack


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

    def constants(self, step: int, rate: float) -> Constants:
        beta1, beta2 = self.betas
        return pack(rate, 1 - rate * self.weight_decay, beta1, 1 - beta1, beta2, 1 - beta2)

    @property
    def formula(self) -> Formula:
        return _lion


@element
def _lion(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, shrink, beta1, gain1, beta2, gain2 = constants
    (m,) = states
    return shrink * p - rate * np.sign(beta1 * m + gain1 * g), (beta2 * m + gain2 * g,)
