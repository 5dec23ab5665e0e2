"""One element of the three float formats: widening is exact, narrowing rounds to nearest even as torch does.

bfloat16 is the upper half of a float32. float16 is widened and narrowed with integer steps and one
float operation that handles subnormals (Giesen, "Half to float done quick" and its inverse), so
every loop around them vectorizes. numba widens integer results to 64 bits; the casts narrow them back.
"""

from __future__ import annotations

import numpy as np

from shoal.kernel import element

# float16, seen from float32's side.
_HALF_SIGN = np.uint32(0x8000)
_HALF_REST = np.uint32(0x7FFF)
_HALF_INFINITY = np.uint32(0x7C00)
_HALF_NAN = np.uint32(0x7E00)
_REBIAS = np.uint32((254 - 15) << 23).view(np.float32)  # 2 ** 112: moves the exponent, subnormals included
_HALF_OVERFLOW = np.uint32((127 + 16) << 23)  # 65536: this and above is infinity or NaN
_HALF_SUBNORMAL = np.uint32((127 - 14) << 23)  # below 2 ** -14 a half is subnormal
_SUBNORMAL_MAGIC = np.uint32((127 - 15 + 23 - 10 + 1) << 23)  # adding it lets the adder do the rounding
_SUBNORMAL_VALUE = _SUBNORMAL_MAGIC.view(np.float32)
_REBIAS_AND_ROUND = np.uint32(((15 - 127) << 23) + 0xFFF & 0xFFFFFFFF)

_ONE = np.uint32(1)
_THIRTEEN = np.uint32(13)
_SIXTEEN = np.uint32(16)
_FLOAT_INFINITY = np.uint32(0x7F800000)
_FLOAT_SIGN = np.uint32(0x80000000)


@element
def widen_float32(value: np.float32) -> np.float32:
    return value


@element
def narrow_float32(value: np.float32) -> np.float32:
    return value


@element
def widen_bfloat16(half: np.uint16) -> np.float32:
    return np.uint32(np.uint32(half) << _SIXTEEN).view(np.float32)


@element
def narrow_bfloat16(value: np.float32) -> np.uint16:
    bits = np.float32(value).view(np.uint32)
    odd = (bits >> _SIXTEEN) & _ONE
    rounded = np.uint16((bits + np.uint32(0x7FFF) + odd) >> _SIXTEEN)
    return np.uint16(0x7FC0) if value != value else rounded  # noqa: PLR0124 - NaN is what differs from itself


@element
def widen_float16(half: np.uint16) -> np.float32:
    rest = np.uint32(np.uint32(half) & _HALF_REST)
    sign = np.uint32((np.uint32(half) & _HALF_SIGN) << _SIXTEEN)
    scaled = np.float32(np.uint32(rest << _THIRTEEN).view(np.float32) * _REBIAS)
    bits = np.uint32(scaled.view(np.uint32))
    if rest >= _HALF_INFINITY:  # infinity and NaN keep their meaning, not their rescaled exponent
        bits = np.uint32(bits | _FLOAT_INFINITY)
    return np.uint32(bits | sign).view(np.float32)


@element
def narrow_float16(value: np.float32) -> np.uint16:
    raw = np.float32(value).view(np.uint32)
    sign = np.uint32(raw & _FLOAT_SIGN)
    bits = np.uint32(raw ^ sign)
    if bits >= _HALF_OVERFLOW:
        half = _HALF_NAN if bits > _FLOAT_INFINITY else _HALF_INFINITY
    elif bits < _HALF_SUBNORMAL:
        half = np.uint32(np.float32(bits.view(np.float32) + _SUBNORMAL_VALUE).view(np.uint32) - _SUBNORMAL_MAGIC)
    else:
        odd = np.uint32((bits >> _THIRTEEN) & _ONE)
        half = np.uint32(np.uint32(bits + _REBIAS_AND_ROUND + odd) >> _THIRTEEN)
    return np.uint16(half | np.uint32(sign >> _SIXTEEN))
