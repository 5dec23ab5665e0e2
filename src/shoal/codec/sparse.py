"""Codecs that carry few elements whole, and nothing of the others: the largest, or some by chance.

A record is a chunk of CHUNK elements, of which one in SHARE is kept, as bfloat16. Top-k (Aji and Heafield, arXiv
1704.05021) keeps those of the largest magnitude, and packs their places in 12 bits each (as SparseLoCo does, arXiv
2508.15706). Random-k (Stich et al., arXiv 1809.07599, sec. 2.1) keeps one of each SHARE neighbours, by a seed that
stands for their places: each element has the same chance, which is all that its bound, definition 2.1, takes. Both
need error feedback.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from shoal.codec import floats, quantise
from shoal.codec.packed import Decode, Recorded
from shoal.kernel import Bytes, Floats, element, specialised

CHUNK = 4096  # elements: places in it take 12 bits
SHARE = 64
KEPT = CHUNK // SHARE
SEED_BYTES = 4
LANES = 2 * KEPT  # maxima of so many parts of a chunk bound what is kept of it from below; see _choose


@dataclass(frozen=True)
class TopK(Recorded):
    """A record: the values of the largest in order of their places, then the places. Of equals, the first are kept;
    infinity and NaN are above all numbers."""

    record: ClassVar[int] = CHUNK

    def record_bytes(self, elements: int) -> int:
        kept = -(-elements // SHARE)
        return 2 * kept + (3 * kept + 1) // 2

    def encode(self, encoded: Bytes, values: Floats, seed: int) -> None:
        self._encode(encoded, values)

    @cached_property
    def first(self) -> Decode:
        return _top_decode_loop(_zero, _place_of, _value_of, floats.widen_bfloat16)

    @cached_property
    def add(self) -> Decode:
        return _top_decode_loop(_leave, _place_of, _value_of, floats.widen_bfloat16)

    @cached_property
    def _encode(self) -> Callable[[Bytes, Floats], None]:
        return _top_encode_loop(_choose, _put_value, floats.narrow_bfloat16)


@dataclass(frozen=True)
class RandomK(Recorded):
    """A record: the seed of its places, then the values in order."""

    record: ClassVar[int] = CHUNK

    def record_bytes(self, elements: int) -> int:
        return SEED_BYTES + 2 * -(-elements // SHARE)

    def encode(self, encoded: Bytes, values: Floats, seed: int) -> None:
        self._encode(encoded, values, np.uint32(seed & 0xFFFFFFFF))

    @cached_property
    def first(self) -> Decode:
        return _random_decode_loop(_zero, _chosen, quantise.scrambled, _value_of, floats.widen_bfloat16)

    @cached_property
    def add(self) -> Decode:
        return _random_decode_loop(_leave, _chosen, quantise.scrambled, _value_of, floats.widen_bfloat16)

    @cached_property
    def _encode(self) -> Callable[[Bytes, Floats, np.uint32], None]:
        return _random_encode_loop(_chosen, quantise.scrambled, _put_value, floats.narrow_bfloat16)


# --- loops --------------------------------------------------------------------------------------


def _top_encode_loop(choose: Any, put_value: Any, narrow: Any) -> Callable[..., None]:
    def encode(encoded: Bytes, values: Floats) -> None:
        keys, candidates = np.empty(CHUNK, np.uint32), np.empty(CHUNK + 1, np.uint32)
        places, maxima = np.empty(KEPT + 1, np.uint32), np.empty(LANES, np.uint32)
        position = 0
        for start in range(0, values.size, CHUNK):
            length = min(CHUNK, values.size - start)
            kept = (length + SHARE - 1) // SHARE
            bits = values[start : start + length].view(np.uint32)
            for i in range(length):  # the bits of |x| order as the numbers do
                keys[np.uintp(i)] = bits[np.uintp(i)] & np.uint32(0x7FFFFFFF)
            for i in range(length, CHUNK):
                keys[np.uintp(i)] = np.uint32(0)
            choose(places, keys, maxima, candidates, length, kept)
            for i in range(kept):
                put_value(encoded, position, i, narrow(values[start + np.intp(places[i])]))
            position += 2 * kept
            places[kept] = np.uint32(0)
            for i in range((kept + 1) // 2):  # two places in three bytes; of the last one, two
                byte, one, other = position + 3 * i, places[2 * i], places[2 * i + 1]
                encoded[byte] = np.uint8(one & np.uint32(255))
                encoded[byte + 1] = np.uint8((one >> np.uint32(8)) | ((other & np.uint32(15)) << np.uint32(4)))
                if 2 * i + 1 < kept:
                    encoded[byte + 2] = np.uint8(other >> np.uint32(4))
            position += (3 * kept + 1) // 2

    return specialised(encode)


def _top_decode_loop(begin: Any, place_of: Any, value_of: Any, widen: Any) -> Callable[..., None]:
    def decode(total: Floats, encoded: Bytes, weight: np.float32) -> None:
        begin(total)
        position = 0
        for start in range(0, total.size, CHUNK):
            length = min(CHUNK, total.size - start)
            kept = (length + SHARE - 1) // SHARE
            places = position + 2 * kept
            for i in range(kept):
                place = min(place_of(encoded, places, i), length - 1)  # whoever sent it
                total[start + place] += weight * widen(value_of(encoded, position, i))
            position = places + (3 * kept + 1) // 2

    return specialised(decode)


def _random_encode_loop(chosen: Any, scrambled: Any, put_value: Any, narrow: Any) -> Callable[..., None]:
    def encode(encoded: Bytes, values: Floats, seed: np.uint32) -> None:
        position = 0
        for start in range(0, values.size, CHUNK):
            length = min(CHUNK, values.size - start)
            own = np.uint32(scrambled(seed, start))
            encoded[position : position + SEED_BYTES].view(np.uint32)[0] = own
            position += SEED_BYTES
            kept = (length + SHARE - 1) // SHARE
            for i in range(kept):
                place = chosen(scrambled, own, i, length)
                put_value(encoded, position, i, narrow(values[np.uintp(start + np.intp(place))]))
            position += 2 * kept

    return specialised(encode)


def _random_decode_loop(begin: Any, chosen: Any, scrambled: Any, value_of: Any, widen: Any) -> Callable[..., None]:
    def decode(total: Floats, encoded: Bytes, weight: np.float32) -> None:
        begin(total)
        position = 0
        for start in range(0, total.size, CHUNK):
            length = min(CHUNK, total.size - start)
            own = encoded[position : position + SEED_BYTES].view(np.uint32)[0]
            position += SEED_BYTES
            kept = (length + SHARE - 1) // SHARE
            for i in range(kept):
                place = chosen(scrambled, own, i, length)
                total[np.uintp(start + np.intp(place))] += weight * widen(value_of(encoded, position, i))
            position += 2 * kept

    return specialised(decode)


# --- elements of these loops ----------------------------------------------------------------------


@element
def _chosen(scrambled: Any, own: Any, i: Any, length: Any) -> Any:
    """Which element of a chunk of this length the i-th value of random-k is of; own: the chunk's seed."""
    width = min(SHARE, length - SHARE * i)
    return SHARE * i + ((np.uint64(scrambled(own, i)) * np.uint64(width)) >> np.uint64(32))


@element
def _zero(total: Any) -> None:
    total[:] = np.float32(0)


@element
def _leave(total: Any) -> None:
    pass


@element
def _put_value(encoded: Any, position: Any, i: Any, bits: Any) -> None:
    encoded[position + 2 * i] = np.uint8(bits & np.uint16(255))
    encoded[position + 2 * i + 1] = np.uint8(bits >> np.uint16(8))


@element
def _value_of(encoded: Any, position: Any, i: Any) -> Any:
    low, high = np.uint16(encoded[position + 2 * i]), np.uint16(encoded[position + 2 * i + 1])
    return np.uint16(low | np.uint16(high << np.uint16(8)))


@element
def _place_of(encoded: Any, position: Any, i: Any) -> Any:
    byte = position + 3 * (i // 2)
    if i % 2 == 0:
        return np.int64(encoded[byte]) | (np.int64(encoded[byte + 1] & np.uint8(15)) << 8)
    return (np.int64(encoded[byte + 1]) >> 4) | (np.int64(encoded[byte + 2]) << 4)


@element
def _choose(places: Any, keys: Any, maxima: Any, candidates: Any, length: Any, kept: Any) -> None:
    """The places of the `kept` largest of keys[:length] (31 bits each), ascending; of equals, the first.

    A chunk is looked at as LANES parts, those of places i with the same i % LANES. At least `kept` keys are as large
    as the kept-th largest of the parts' maxima: only those (about 1 in 46 where the order is by chance) are candidates.
    """
    for lane in range(LANES):
        maxima[np.uintp(lane)] = keys[np.uintp(lane)]
    for row in range(LANES, CHUNK, LANES):
        for lane in range(LANES):
            maxima[np.uintp(lane)] = max(maxima[np.uintp(lane)], keys[np.uintp(row + lane)])
    bound = _largest_with(maxima, LANES, kept)
    count = 0
    for i in range(length):
        candidates[np.uintp(count)] = np.uint32(i)
        count += 1 if keys[np.uintp(i)] >= bound else 0
    for i in range(count):  # the keys of the candidates go where no other is needed any more
        keys[np.uintp(i)] = keys[np.uintp(candidates[np.uintp(i)])]
    least = _largest_with(keys, count, kept)
    equals = kept
    for i in range(count):
        equals -= 1 if keys[np.uintp(i)] > least else 0
    found = 0
    for i in range(count):
        key = keys[np.uintp(i)]
        if key > least or (key == least and equals > 0):
            places[found] = candidates[i]
            found += 1
            equals -= 1 if key == least else 0


@element
def _largest_with(keys: Any, length: Any, wanted: Any) -> Any:
    """The largest number of 31 bits that at least `wanted` of keys[:length] are not below."""
    found = np.uint32(0)
    for power in range(31):
        tried = np.uint32(found | np.uint32(np.uint32(1 << 30) >> np.uint32(power)))
        count = np.uint32(0)
        for i in range(length):
            count += np.uint32(1) if keys[np.uintp(i)] >= tried else np.uint32(0)
        found = tried if count >= wanted else found
    return found


SPARSE = (TopK("topk", True), RandomK("randomk", True))
