"""RMSprop (Hinton 2012, lecture 6e; centered: Graves 2013), as torch.optim.RMSprop defines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.kernel import Floats, kernel
from shoal.optim.rule import Rule, pack

_ABSENT = np.empty(0, np.float32)  # stands in for a state array that these settings do without


@dataclass(frozen=True)
class RMSprop(Rule):
    """square = alpha * square + (1 - alpha) * g**2; p -= lr * g / (sqrt(square) + eps).

    centered takes the squared running mean of the gradient off square first; momentum sums up the
    quotients: buffer = momentum * buffer + g / (...), p -= lr * buffer. weight_decay adds
    weight_decay * p to the gradient.
    """

    name = "rmsprop"

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        return (
            "square_avg",
            *(("grad_avg",) if self.centered else ()),
            *(("momentum_buffer",) if self.momentum else ()),
        )

    def constants(self, step: int, rate: float) -> Floats:
        return pack(rate, self.weight_decay, self.alpha, 1 - self.alpha, self.eps, self.momentum)

    def update(self, parameters: Floats, gradient: Floats, states: Sequence[Floats], constants: Floats) -> None:
        mean = states[1] if self.centered else _ABSENT
        buffer = states[-1] if self.momentum else _ABSENT
        _rmsprop(parameters, gradient, states[0], mean, buffer, constants)


@kernel
def _rmsprop(
    parameters: Floats, gradient: Floats, square: Floats, mean: Floats, buffer: Floats, constants: Floats
) -> None:
    rate, weight_decay, alpha, gain = constants[0], constants[1], constants[2], constants[3]
    eps, momentum = constants[4], constants[5]
    centered, buffered = mean.size > 0, buffer.size > 0  # the compiler makes a loop for each case
    for i in range(parameters.size):
        g = gradient[i] + weight_decay * parameters[i]
        s = alpha * square[i] + gain * (g * g)
        square[i] = s
        if centered:
            a = mean[i] + gain * (g - mean[i])
            mean[i] = a
            s = s - a * a
        q = g / (np.sqrt(s) + eps)
        if buffered:
            q = momentum * buffer[i] + q
            buffer[i] = q
        parameters[i] -= rate * q
