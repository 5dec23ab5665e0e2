"""RMSprop (Hinton 2012, lecture 6e; centered: Graves 2013), as torch.optim.RMSprop defines it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.kernel import element
from shoal.optim.rule import Constants, Formula, Moved, Rule, Value, Values, pack


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

    def constants(self, step: int, rate: float) -> Constants:
        return pack(rate, self.weight_decay, self.alpha, 1 - self.alpha, self.eps, self.momentum)

    @property
    def formula(self) -> Formula:
        return {
            (False, False): _rmsprop,
            (False, True): _rmsprop_momentum,
            (True, False): _rmsprop_centered,
            (True, True): _rmsprop_centered_momentum,
        }[self.centered, self.momentum != 0]


@element
def _rmsprop(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, weight_decay, alpha, gain, eps, _ = constants
    (square,) = states
    g = g + weight_decay * p
    s = alpha * square + gain * (g * g)
    return p - rate * (g / (np.sqrt(s) + eps)), (s,)


@element
def _rmsprop_momentum(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, weight_decay, alpha, gain, eps, momentum = constants
    square, buffer = states
    g = g + weight_decay * p
    s = alpha * square + gain * (g * g)
    b = momentum * buffer + g / (np.sqrt(s) + eps)
    return p - rate * b, (s, b)


@element
def _rmsprop_centered(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, weight_decay, alpha, gain, eps, _ = constants
    square, mean = states
    g = g + weight_decay * p
    s = alpha * square + gain * (g * g)
    a = mean + gain * (g - mean)
    return p - rate * (g / (np.sqrt(s - a * a) + eps)), (s, a)


@element
def _rmsprop_centered_momentum(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, weight_decay, alpha, gain, eps, momentum = constants
    square, mean, buffer = states
    g = g + weight_decay * p
    s = alpha * square + gain * (g * g)
    a = mean + gain * (g - mean)
    b = momentum * buffer + g / (np.sqrt(s - a * a) + eps)
    return p - rate * b, (s, a, b)
