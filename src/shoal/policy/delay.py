"""DC-ASGD as a value; core/compensation.py does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.errors import ConfigurationError


@dataclass(frozen=True)
class DelayCompensated:
    """DC-ASGD: a gradient g that was computed on parameters w_then becomes what it would about be on w_now, by a first
    order Taylor expansion with g g^T in place of the Hessian (Zheng et al., arXiv 1609.08326, equation 10):

        g' = g + lambda g * g * (w_now - w_then)

    The adaptive form (DC-ASGD-a) has, for each element, lambda = rate / sqrt(square + 1e-7), where
    square = mean_square square + (1 - mean_square) g * g; with mean_square=0 lambda is the rate everywhere (DC-ASGD-c).
    ConfigurationError for a rate that is not above 0, or a mean_square outside [0, 1).
    """

    rate: float = 2.0
    mean_square: float = 0.95

    def __post_init__(self) -> None:
        for value, least, what in (
            (self.rate, math.ulp(0.0), "rate must be a number above 0"),
            (self.mean_square, 0.0, "mean_square must be a number from 0 (a constant rate) up to, not including, 1"),
        ):
            given: object = value  # users write what they like
            number = isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
            if not number or value < least or (what.startswith("mean") and value >= 1):
                raise ConfigurationError(f"{self!r}: {what}, as in DelayCompensated(rate=2.0, mean_square=0.95)")
