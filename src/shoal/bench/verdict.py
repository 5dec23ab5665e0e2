"""Whether what was timed was the exchange: what every side's parameters must be once it is over.

All workers of a side hold the same bits, and its parameters are those of one process with torch's own
optimizer on the mean gradient, within TOLERANCE. If not, there is no result but an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.bench.orders import Answer
from shoal.errors import ShoalError

TOLERANCE = 1e-5  # of a parameter's absolute difference from the reference, after all steps


class WrongResultError(ShoalError):
    """A side's parameters are not what its optimizer should have made of them."""


def verify(side: str, answers: Iterable[Answer]) -> float:
    """The worst parameter's difference from the reference; WrongResultError if it, or any bit, is wrong."""
    answers = list(answers)
    if len({digest for answer in answers for digest in answer.digests}) != 1:
        raise WrongResultError(f"the workers of {side} do not hold the same parameters: their digests differ")
    (found,) = (answer.difference for answer in answers if answer.difference is not None)
    if not found <= TOLERANCE:
        raise WrongResultError(
            f"a parameter of {side} is {found:.3g} off that of torch's optimizer on the mean gradient, more than "
            f"{TOLERANCE:g}: what was timed is not the exchange, so there is no result"
        )
    return found


def same(digests: Mapping[str, str]) -> None:
    """WrongResultError unless all sides, by name, came to the same bits."""
    if len(set(digests.values())) > 1:
        raise WrongResultError(f"{' and '.join(digests)} do not hold the same parameters: their digests differ")
