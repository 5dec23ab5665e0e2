"""The loops over encoded arrays, made for each wire format from what it does with one element.

Each is one pass over memory: widening, weighing and adding happen in registers. All arrays are
one-dimensional, contiguous and equally long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.kernel import Encoded, Floats, element, kernel, specialised

Widen = Callable[[Any], np.float32]  # from what one element travels as
Narrow = Callable[[np.float32], Any]  # and back, rounded to nearest even

_MAGNITUDE_32 = np.uint32(0x7FFFFFFF)
_MAGNITUDE_16 = np.uint16(0x7FFF)


def first_of(widen: Widen) -> Callable[[Floats, Encoded, np.float32], None]:
    """first(accumulator, encoded, weight): accumulator = weight * widened."""

    def first(accumulator: Floats, encoded: Encoded, weight: np.float32) -> None:
        for i in range(accumulator.size):
            accumulator[i] = weight * widen(encoded[i])

    return specialised(first)


def add_of(widen: Widen) -> Callable[[Floats, Encoded, np.float32], None]:
    """add(accumulator, encoded, weight): accumulator += weight * widened."""

    def add(accumulator: Floats, encoded: Encoded, weight: np.float32) -> None:
        for i in range(accumulator.size):
            accumulator[i] += weight * widen(encoded[i])

    return specialised(add)


def encode_of(narrow: Narrow) -> Callable[[Encoded, Floats], None]:
    """encode(encoded, values): encoded = values, narrowed."""

    def encode(encoded: Encoded, values: Floats) -> None:
        for i in range(values.size):
            encoded[i] = narrow(values[i])

    return specialised(encode)


@element
def keep(total: Any, i: Any, x: Any) -> None:
    total[i] = x


@element
def sum_up(total: Any, i: Any, x: Any) -> None:
    total[i] += x


# Copies that tell the largest magnitude among the bits of a float, in which infinity is above all
# numbers and NaN above infinity. An integer maximum vectorizes; a test of each element would not.


@kernel
def copy_bits32(destination: npt.NDArray[np.uint32], source: npt.NDArray[np.uint32]) -> np.uint32:
    largest = np.uint32(0)
    for i in range(destination.size):
        bits = source[i]
        destination[i] = bits
        largest = max(largest, np.uint32(bits & _MAGNITUDE_32))
    return largest


@kernel
def copy_bits16(destination: npt.NDArray[np.uint16], source: npt.NDArray[np.uint16]) -> np.uint16:
    largest = np.uint16(0)
    for i in range(destination.size):
        bits = source[i]
        destination[i] = bits
        largest = max(largest, np.uint16(bits & _MAGNITUDE_16))
    return largest


# The same of values that stay where they are.


@kernel
def largest_bits32(values: npt.NDArray[np.uint32]) -> np.uint32:
    largest = np.uint32(0)
    for i in range(values.size):
        largest = max(largest, np.uint32(values[i] & _MAGNITUDE_32))
    return largest


@kernel
def largest_bits16(values: npt.NDArray[np.uint16]) -> np.uint16:
    largest = np.uint16(0)
    for i in range(values.size):
        largest = max(largest, np.uint16(values[i] & _MAGNITUDE_16))
    return largest
