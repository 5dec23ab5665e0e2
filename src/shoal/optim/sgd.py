"""Stochastic gradient descent with momentum, as torch.optim.SGD defines it."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import ConfigurationError
from shoal.kernel import element
from shoal.optim.rule import Constants, Formula, Moved, Rule, Value, Values, pack


@dataclass(frozen=True)
class SGD(Rule):
    """p -= lr * d, where d is the gradient, or its running sum under momentum.

    With momentum: buffer = momentum * buffer + (1 - dampening) * g (the first one is g itself), and
    d = buffer, or g + momentum * buffer with nesterov (Sutskever et al. 2013). weight_decay adds
    weight_decay * p to the gradient.
    """

    name = "sgd"

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ConfigurationError(
                f"SGD(nesterov=True) needs momentum above 0 and dampening 0; "
                f"here momentum={self.momentum!r}, dampening={self.dampening!r}"
            )

    @property
    def states(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def constants(self, step: int, rate: float) -> Constants:
        kept, gained = (0.0, 1.0) if step == 1 else (self.momentum, 1 - self.dampening)
        of_gradient, of_buffer = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        return pack(rate, self.weight_decay, kept, gained, of_gradient, of_buffer)

    @property
    def formula(self) -> Formula:
        return _sgd_momentum if self.momentum else _sgd


@dataclass(frozen=True)
class Nesterov(SGD):
    """SGD with Nesterov momentum, and the settings of DiLoCo's outer step (arXiv 2311.08105, section 3)."""

    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True


@element
def _sgd(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, weight_decay = constants[0], constants[1]
    return p - rate * (g + weight_decay * p), ()


@element
def _sgd_momentum(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, weight_decay, kept, gained, of_gradient, of_buffer = constants
    (buffer,) = states
    g = g + weight_decay * p
    b = kept * buffer + gained * g
    return p - rate * (of_gradient * g + of_buffer * b), (b,)
