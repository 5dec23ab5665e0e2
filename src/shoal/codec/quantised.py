"""Codecs that carry few bits an element: buckets of values, each with one scale.

A record is a bucket: its scale in float32, then the codes, packed from the lowest bits of each byte up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from shoal.codec import quantise
from shoal.codec.arrays import keep, sum_up
from shoal.codec.packed import Decode, Recorded
from shoal.kernel import Bytes, Floats, element, specialised

BUCKET = 512  # elements that share a scale
SCALE_BYTES = 4

Scale = Callable[[Any, Any, Any], Any]
Level = Callable[[Any, Any], Any]
Value = Callable[[Any], Any]


@dataclass(frozen=True)
class Quantised(Recorded):
    """Each element as a code of `bits` bits. scale: of what the levels of a bucket are multiples."""

    bits: int
    scale: Scale
    level: Level
    value: Value

    record: ClassVar[int] = BUCKET

    def record_bytes(self, elements: int) -> int:
        return SCALE_BYTES + -(-elements * self.bits // 8)

    def encode(self, encoded: Bytes, values: Floats, seed: int) -> None:
        self._encode(encoded, values, np.uint32(seed & 0xFFFFFFFF))

    @cached_property
    def first(self) -> Decode:
        return _decode_loop(self.value, _UNPACK[self.bits], keep)

    @cached_property
    def add(self) -> Decode:
        return _decode_loop(self.value, _UNPACK[self.bits], sum_up)

    @cached_property
    def _encode(self) -> Callable[[Bytes, Floats, np.uint32], None]:
        return _encode_loop(self.scale, self.level, _PACK[self.bits])


def _encode_loop(scale_of: Scale, level: Level, pack: Any) -> Callable[..., None]:
    chance, usable = quantise.chance, quantise.usable

    def encode(encoded: Bytes, values: Floats, seed: np.uint32) -> None:
        codes = np.zeros(BUCKET, np.uint8)
        position = 0
        for start in range(0, values.size, BUCKET):
            length = min(BUCKET, values.size - start)
            scale = np.float32(scale_of(values, start, length))
            scale = usable(scale)
            inverse = np.float32(1) / scale if scale > np.float32(0) else np.float32(0)
            for i in range(length):
                x = np.float32(values[np.uintp(start + i)] * inverse)
                codes[np.uintp(i)] = level(x, chance(seed, start + i))
            for i in range(length, BUCKET):
                codes[np.uintp(i)] = np.uint8(0)
            encoded[position : position + 4].view(np.float32)[0] = scale
            position = pack(encoded, position + 4, codes, length)

    return specialised(encode)


def _decode_loop(value: Value, unpack: Any, join: Any) -> Callable[..., None]:
    def decode(total: Floats, encoded: Bytes, weight: np.float32) -> None:
        codes = np.empty(BUCKET, np.uint8)
        position = 0
        for start in range(0, total.size, BUCKET):
            length = min(BUCKET, total.size - start)
            scale = encoded[position : position + 4].view(np.float32)[0]
            position = unpack(codes, encoded, position + 4, length)
            for i in range(length):
                join(total, np.uintp(start + i), weight * np.float32(scale * value(codes[np.uintp(i)])))

    return specialised(decode)


# --- codes in bytes: (encoded, position, codes, length) -> the position behind them ----------------


@element
def _pack_8(encoded: Any, position: Any, codes: Any, length: Any) -> Any:
    for i in range(length):
        encoded[np.uintp(position + i)] = codes[np.uintp(i)]
    return position + length


@element
def _pack_4(encoded: Any, position: Any, codes: Any, length: Any) -> Any:
    count = (length + 1) // 2
    for i in range(count):
        j = np.uintp(2 * i)
        encoded[np.uintp(position + i)] = np.uint8(codes[j] | (codes[j + np.uintp(1)] << np.uint8(4)))
    return position + count


@element
def _pack_2(encoded: Any, position: Any, codes: Any, length: Any) -> Any:
    count = (length + 3) // 4
    for i in range(count):
        j = np.uintp(4 * i)
        low = codes[j] | (codes[j + np.uintp(1)] << np.uint8(2))
        high = codes[j + np.uintp(2)] | (codes[j + np.uintp(3)] << np.uint8(2))
        encoded[np.uintp(position + i)] = np.uint8(low | (high << np.uint8(4)))
    return position + count


@element
def _pack_1(encoded: Any, position: Any, codes: Any, length: Any) -> Any:
    count = (length + 7) // 8
    for i in range(count):
        byte = np.uint8(0)
        for bit in range(8):
            byte |= np.uint8(codes[np.uintp(8 * i + bit)] << np.uint8(bit))
        encoded[np.uintp(position + i)] = byte
    return position + count


@element
def _unpack_8(codes: Any, encoded: Any, position: Any, length: Any) -> Any:
    for i in range(length):
        codes[np.uintp(i)] = encoded[np.uintp(position + i)]
    return position + length


@element
def _unpack_4(codes: Any, encoded: Any, position: Any, length: Any) -> Any:
    count = (length + 1) // 2
    for i in range(count):
        byte = encoded[np.uintp(position + i)]
        codes[np.uintp(2 * i)] = np.uint8(byte & np.uint8(15))
        codes[np.uintp(2 * i + 1)] = np.uint8(byte >> np.uint8(4))
    return position + count


@element
def _unpack_2(codes: Any, encoded: Any, position: Any, length: Any) -> Any:
    count = (length + 3) // 4
    for i in range(count):
        byte = encoded[np.uintp(position + i)]
        for part in range(4):
            codes[np.uintp(4 * i + part)] = np.uint8((byte >> np.uint8(2 * part)) & np.uint8(3))
    return position + count


@element
def _unpack_1(codes: Any, encoded: Any, position: Any, length: Any) -> Any:
    count = (length + 7) // 8
    for i in range(count):
        byte = encoded[np.uintp(position + i)]
        for bit in range(8):
            codes[np.uintp(8 * i + bit)] = np.uint8((byte >> np.uint8(bit)) & np.uint8(1))
    return position + count


_PACK = {8: _pack_8, 4: _pack_4, 2: _pack_2, 1: _pack_1}
_UNPACK = {8: _unpack_8, 4: _unpack_4, 2: _unpack_2, 1: _unpack_1}

QUANTISED = (
    Quantised("int8", False, 8, quantise.largest, quantise.level_int8, quantise.value_int8),
    Quantised("int4", False, 4, quantise.largest, quantise.level_int4, quantise.value_int4),
    Quantised("e3m0", False, 4, quantise.largest, quantise.level_e3m0, quantise.value_e3m0),
    Quantised("2bit", True, 2, quantise.root_mean_square, quantise.level_2bit, quantise.value_2bit),
    Quantised("sign", True, 1, quantise.mean_magnitude, quantise.level_sign, quantise.value_sign),
)
