"""Delayed Nesterov momentum, for updates that come one by one, each of another age."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import ConfigurationError
from shoal.kernel import element
from shoal.optim.rule import Constants, Formula, Moved, Rule, Value, Values, pack


@dataclass(frozen=True)
class DelayedNesterov(Rule):
    """Nesterov momentum that moves with every N-th update only (Liu et al. 2024, arXiv 2401.09135, algorithm 3).

    N is `every`, best the number of workers; c is `share`, in [0, 1/N]. Each update g joins the accumulator a, and
    moves the parameters by its N-th part:

        a += g; p -= lr * (c * momentum * m + g / N)

    and every N-th one, in place of that:

        a += g; m = momentum * m + a / N; p -= lr * ((1 - (N - 1) c) * momentum * m + g / N); a = 0

    So momentum is applied once in N updates (c = 0), or spread over them. Where updates are stale, plain Nesterov
    momentum takes N steps for one, each by differences that do not know of each other. Counted are the updates of
    each block.
    """

    name = "delayed-nesterov"

    lr: float = 0.7
    momentum: float = 0.9
    every: int = 4
    share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every != int(self.every) or not 0 <= self.share <= 1 / self.every:
            raise ConfigurationError(
                f"DelayedNesterov(every={self.every!r}, share={self.share!r}): every must be a whole number of "
                f"updates, and share at most one part in so many"
            )

    @property
    def states(self) -> tuple[str, ...]:
        return ("momentum_buffer", "accumulator")

    def constants(self, step: int, rate: float) -> Constants:
        part = 1 / self.every
        if step % self.every:
            return pack(rate, part, 1.0, 0.0, self.share * self.momentum, 1.0)
        rest = 1 - (self.every - 1) * self.share
        return pack(rate, part, self.momentum, part, rest * self.momentum, 0.0)

    @property
    def formula(self) -> Formula:
        return _delayed


@element
def _delayed(p: Value, g: Value, states: Values, constants: Constants) -> Moved:
    rate, part, kept, gained, of_buffer, carried = constants
    buffer, accumulator = states
    a = accumulator + g
    b = kept * buffer + gained * a
    return p - rate * (of_buffer * b + part * g), (b, carried * a)
