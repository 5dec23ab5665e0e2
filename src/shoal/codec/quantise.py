"""One bucket of values as few bits each: how it is scaled, rounded to levels, and put back.

A bucket's scale is one float32; x / scale is rounded to one of the levels. Levels are told by their code,
an integer of `bits` bits. Loops around these vectorize; see quantised.py for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal.kernel import element

_ONE, _HALF = np.float32(1), np.float32(0.5)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SIGN = np.uint32(0x80000000)
_UNIT = np.float32(2.0**-24)

# --- chance -------------------------------------------------------------------------------------


@element
def scrambled(seed: Any, i: Any) -> Any:
    """32 bits that depend on these two alone, the upper ones best: an integer hash (Wellons, lowbias32, but for its
    last shift)."""
    x = np.uint32(np.uint32(seed) + np.uint32(i))
    x = np.uint32((x ^ np.uint32(x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    return np.uint32((x ^ np.uint32(x >> np.uint32(15))) * np.uint32(0x846CA68B))


@element
def chance(seed: Any, i: Any) -> Any:
    """A number in [0, 1) that depends on these two alone."""
    # By way of a signed integer: that is what processors convert at once.
    return np.float32(np.int32(scrambled(seed, i) >> np.uint32(8))) * _UNIT


@element
def usable(scale: Any) -> Any:
    """The scale, or 0 where its inverse would not be a number: no gradient that matters is so small."""
    return np.float32(0) if scale < np.float32(1e-30) else np.float32(scale)


# --- scales: of what a code's levels are multiples ------------------------------------------------


@element
def largest(values: Any, start: Any, length: Any) -> Any:
    """max |x|; infinity and NaN are above all numbers."""
    bits = np.uint32(0)
    for i in range(length):
        bits = max(bits, np.uint32(np.float32(values[np.uintp(start + i)]).view(np.uint32) & _MAGNITUDE))
    return np.uint32(bits).view(np.float32)


@element
def root_mean_square(values: Any, start: Any, length: Any) -> Any:
    """sqrt(mean x**2), summed in float64."""
    total = np.float64(0)
    for i in range(length):
        x = np.float64(values[np.uintp(start + i)])
        total += x * x
    return np.float32(np.sqrt(total / length))


@element
def mean_magnitude(values: Any, start: Any, length: Any) -> Any:
    """mean |x|, summed in float64."""
    total = np.float64(0)
    for i in range(length):
        total += np.float64(abs(values[np.uintp(start + i)]))
    return np.float32(total / length)


# --- levels: x is what was scaled, u a number in [0, 1) --------------------------------------------


@element
def level_int8(x: Any, u: Any) -> Any:
    """-127 .. 127, by stochastic rounding: floor(127 x + u), whose mean is 127 x (QSGD, arXiv 1610.02132, sec. 3)."""
    y = np.floor(np.float32(x * np.float32(127)) + u)
    return np.uint8(np.int32(min(max(y, np.float32(-127)), np.float32(127))) + np.int32(127))


@element
def value_int8(code: Any) -> Any:
    return (np.float32(code) - np.float32(127)) * np.float32(1 / 127)


@element
def level_int4(x: Any, u: Any) -> Any:
    """-7 .. 7, by stochastic rounding."""
    y = np.floor(np.float32(x * np.float32(7)) + u)
    return np.uint8(np.int32(min(max(y, np.float32(-7)), np.float32(7))) + np.int32(7))


@element
def value_int4(code: Any) -> Any:
    return (np.float32(code) - np.float32(7)) * np.float32(1 / 7)


@element
def level_e3m0(x: Any, u: Any) -> Any:
    """Sign, and three bits of exponent: 0, 2**-6 .. 2**0, the nearest (Streaming DiLoCo, arXiv 2501.18512, sec. 2.4).

    Half a mantissa more rounds the exponent up from 1.5 times a power of two on, which is the middle to the next.
    """
    bits = np.float32(x).view(np.uint32)
    magnitude = np.uint32(bits & _MAGNITUDE)
    exponent = np.int32(np.uint32(magnitude + np.uint32(1 << 22)) >> np.uint32(23)) - np.int32(127 - 7)
    least = np.int32(1) if magnitude >= np.uint32((127 - 7) << 23) else np.int32(0)  # 2**-7: halfway to the first
    exponent = min(max(exponent, least), np.int32(7))
    return np.uint8(exponent | (np.int32(8) if bits & _SIGN else np.int32(0)))


@element
def value_e3m0(code: Any) -> Any:
    exponent = np.uint32(np.uint32(code) & np.uint32(7))
    bits = np.uint32(np.uint32(exponent + np.uint32(127 - 7)) << np.uint32(23)) if exponent else np.uint32(0)
    return np.uint32(bits | np.uint32(np.uint32(np.uint32(code) & np.uint32(8)) << np.uint32(28))).view(np.float32)


@element
def level_2bit(x: Any, u: Any) -> Any:
    """One of four, 0.9957 root mean squares apart: the best for a normal distribution (Max 1960, table II)."""
    y = np.floor(np.float32(x * np.float32(1 / 0.9957)))
    return np.uint8(np.int32(min(max(y, np.float32(-2)), _ONE)) + np.int32(2))


@element
def value_2bit(code: Any) -> Any:
    return (np.float32(code) - np.float32(1.5)) * np.float32(0.9957)


@element
def level_sign(x: Any, u: Any) -> Any:
    """Its sign alone, of mean magnitude (Karimireddy et al., arXiv 1901.09847, algorithm 1)."""
    return np.uint8(1) if x < np.float32(0) else np.uint8(0)


@element
def value_sign(code: Any) -> Any:
    return _ONE - np.float32(2) * np.float32(code)
