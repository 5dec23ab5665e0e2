"""Stochastic gradient descent with momentum, as torch.optim.SGD defines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.errors import ConfigurationError
from shoal.kernel import Floats, kernel
from shoal.optim.rule import Rule, pack


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

    def constants(self, step: int, rate: float) -> Floats:
        kept, gained = (0.0, 1.0) if step == 1 else (self.momentum, 1 - self.dampening)
        of_gradient, of_buffer = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        return pack(rate, self.weight_decay, kept, gained, of_gradient, of_buffer)

    def update(self, parameters: Floats, gradient: Floats, states: Sequence[Floats], constants: Floats) -> None:
        if states:
            _momentum(parameters, gradient, states[0], constants)
        else:
            _plain(parameters, gradient, constants)


@kernel
def _plain(parameters: Floats, gradient: Floats, constants: Floats) -> None:
    rate, weight_decay = constants[0], constants[1]
    for i in range(parameters.size):
        parameters[i] -= rate * (gradient[i] + weight_decay * parameters[i])


@kernel
def _momentum(parameters: Floats, gradient: Floats, buffer: Floats, constants: Floats) -> None:
    rate, weight_decay, kept, gained = constants[0], constants[1], constants[2], constants[3]
    of_gradient, of_buffer = constants[4], constants[5]
    for i in range(parameters.size):
        g = gradient[i] + weight_decay * parameters[i]
        b = kept * buffer[i] + gained * g
        buffer[i] = b
        parameters[i] -= rate * (of_gradient * g + of_buffer * b)
