"""Codecs that carry few bits an element: buckets of values, each with one scale.

A block is encoded as one record after the other, each of BUCKET elements (the last one of the rest): its
scale in float32, then the codes, packed from the lowest bits of each byte up. So any run of whole buckets can be
decoded on its own, and combining decodes in pieces that stay in the core's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shoal.codec import quantise
from shoal.kernel import Bytes, Floats, element, read_only, specialised

BUCKET = 512  # elements that share a scale
SCALE_BYTES = 4

Scale = Callable[[Any, Any, Any], Any]
Level = Callable[[Any, Any], Any]
Value = Callable[[Any], Any]


@dataclass(frozen=True)
class Packed:
    """One such codec. feedback: it must not be used without error feedback.

    Values are (elements,) float32, encoded (bytes_of(elements),) uint8, both contiguous.
    """

    name: str
    bits: int
    scale: Scale
    level: Level
    value: Value
    feedback: bool

    item = np.uint8

    def bytes_of(self, elements: int) -> int:
        """Bytes that a block of so many elements takes on the wire."""
        return self.offset(elements)

    def offset(self, start: int) -> int:
        """Where element `start` of a block, the first of a bucket, is encoded; or where so many end."""
        whole, rest = divmod(start, BUCKET)
        record = SCALE_BYTES + BUCKET * self.bits // 8
        return whole * record + (SCALE_BYTES + -(-rest * self.bits // 8) if rest else 0)

    def encode(self, encoded: Bytes, values: Floats, seed: int) -> None:
        """encoded = values. seed: of what is rounded by chance; the same gives the same bits."""
        self._encode(encoded, values, np.uint32(seed & 0xFFFFFFFF))

    def warm(self) -> None:
        """Compile a server's kernels (or load them from disk), so that the first step does not wait for it."""
        values, encoded = np.zeros(1, np.float32), np.zeros(self.bytes_of(1), np.uint8)
        self.first(values, read_only(encoded), np.float32(1))
        self.add(values, read_only(encoded), np.float32(1))

    @cached_property
    def first(self) -> Callable[[Floats, Bytes, np.float32], None]:
        """first(total, encoded, weight): total = weight * decoded."""
        return _decode_loop(self.value, _UNPACK[self.bits], _keep)

    @cached_property
    def add(self) -> Callable[[Floats, Bytes, np.float32], None]:
        """add(total, encoded, weight): total += weight * decoded."""
        return _decode_loop(self.value, _UNPACK[self.bits], _sum)

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


@element
def _keep(total: Any, i: Any, x: Any) -> None:
    total[i] = x


@element
def _sum(total: Any, i: Any, x: Any) -> None:
    total[i] += x


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

PACKED = {
    codec.name: codec
    for codec in (
        Packed("int8", 8, quantise.largest, quantise.level_int8, quantise.value_int8, feedback=False),
        Packed("int4", 4, quantise.largest, quantise.level_int4, quantise.value_int4, feedback=False),
        Packed("e3m0", 4, quantise.largest, quantise.level_e3m0, quantise.value_e3m0, feedback=False),
        Packed("2bit", 2, quantise.root_mean_square, quantise.level_2bit, quantise.value_2bit, feedback=True),
        Packed("sign", 1, quantise.mean_magnitude, quantise.level_sign, quantise.value_sign, feedback=True),
    )
}
