"""Packed codecs lose what they say and no more, keep the mean where they round by chance, and decode in any pieces."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.codec.codec import PACKED
from shoal.codec.packed import Packed
from shoal.codec.quantised import BUCKET, QUANTISED
from shoal.codec.sparse import CHUNK, SHARE
from shoal.kernel import Floats

SIZES = (0, 1, 2, 7, 255, BUCKET, BUCKET + 1, 5 * BUCKET - 3, 70_001)
# Bits an element, beside 32 for each bucket's scale.
BITS = {"int8": 8, "int4": 4, "e3m0": 4, "2bit": 2, "sign": 1}

every = pytest.mark.parametrize("codec", PACKED.values(), ids=PACKED)
quantised = pytest.mark.parametrize("codec", QUANTISED, ids=lambda codec: codec.name)


def gradient(size: int, seed: int = 0) -> Floats:
    """Of very different magnitudes, from bucket to bucket and inside them."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * np.exp(4 * rng.standard_normal(size))).astype(np.float32)


def encoded(codec: Packed, values: Floats, seed: int = 3) -> np.ndarray:
    found = np.full(codec.bytes_of(values.size), 0xAB, np.uint8)
    codec.encode(found, values, seed)
    return found


def decoded(codec: Packed, values: Floats, seed: int = 3) -> Floats:
    found = np.full(values.size, np.nan, np.float32)
    codec.first(found, encoded(codec, values, seed), np.float32(1))
    return found


def buckets(values: Floats) -> list[Floats]:
    return [values[start : start + BUCKET] for start in range(0, values.size, BUCKET)]


@quantised
@pytest.mark.parametrize("size", SIZES)
def test_what_is_lost_stays_below_the_bound(codec: Packed, size: int) -> None:
    values = gradient(size)
    assert codec.bytes_of(size) == sum(4 + -(-part.size * BITS[codec.name] // 8) for part in buckets(values))
    for part, found in zip(buckets(values), buckets(decoded(codec, values)), strict=True):
        largest, off = np.abs(part).max(), np.abs(found - part)
        match codec.name:
            case "int8":
                assert off.max() <= largest / 127 * (1 + 1e-5)
            case "int4":
                assert off.max() <= largest / 7 * (1 + 1e-5)
            case "e3m0":
                assert np.all(off <= np.maximum(np.abs(part) / 3, largest / 128) * (1 + 1e-5))
            case "2bit":
                spacing = np.float32(0.9957) * np.sqrt(np.mean(np.float64(part) ** 2))
                inside = np.abs(part) <= 2 * spacing
                assert np.all(off[inside] <= spacing / 2 * (1 + 1e-5))
                np.testing.assert_allclose(np.abs(found[~inside]), 1.5 * spacing, rtol=1e-5)
            case "sign":
                np.testing.assert_allclose(found, np.where(part < 0, -1, 1) * np.abs(part).mean(), rtol=1e-5)


def test_e3m0_takes_the_nearest_of_its_levels() -> None:
    levels = np.float32([0, *(2.0**-power for power in range(7))])
    levels = np.concatenate([levels, -levels])
    values = np.random.default_rng(1).uniform(-1, 1, BUCKET).astype(np.float32)
    values[:4] = 1, 2**-7, 2**-8, -(2.0**-6)
    nearest = np.abs(values[:, None] - levels).min(axis=1)
    np.testing.assert_allclose(np.abs(decoded(PACKED["e3m0"], values) - values), nearest, atol=1e-7)


@pytest.mark.parametrize(("name", "levels"), [("int8", 127), ("int4", 7)])
def test_rounding_by_chance_keeps_the_mean_and_its_bits(name: str, levels: int) -> None:
    codec, values, rounds = PACKED[name], gradient(1000), 400
    mean = np.mean([decoded(codec, values, seed=977 * seed) for seed in range(rounds)], axis=0)
    step = np.concatenate([np.full(part.size, np.abs(part).max() / levels) for part in buckets(values)])
    above = np.mod(values / step, 1)  # how often it should be rounded up
    assert np.all(np.abs(mean - values) <= step * (5 * np.sqrt(above * (1 - above) / rounds) + 0.02))
    assert np.array_equal(encoded(codec, values, 5), encoded(codec, values, 5))
    assert not np.array_equal(encoded(codec, values, 5), encoded(codec, values, 6))


@every
def test_pieces_of_whole_records_decode_as_the_whole(codec: Packed) -> None:
    record = codec.record
    values = gradient(3 * record + 17)
    packed, whole, weight = encoded(codec, values), decoded(codec, values), np.float32(0.3)
    total = np.ones(values.size, np.float32)
    for start, stop in ((0, record), (record, 3 * record), (3 * record, values.size)):
        codec.add(total[start:stop], packed[codec.offset(start) : codec.offset(stop)], weight)
    np.testing.assert_array_equal(total, np.float32(1) + weight * whole)


@every
def test_nothing_and_what_is_as_good_as_nothing_is_nothing(codec: Packed) -> None:
    for value in (0.0, -0.0, 1e-42):
        assert not decoded(codec, np.full(300, value, np.float32)).any()


@quantised
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(codec: Packed, value: float) -> None:
    values = gradient(2 * BUCKET)
    values[5] = value
    found = decoded(codec, values)
    assert not np.isfinite(found[5]) and np.isfinite(found[BUCKET:]).all()


def kept(codec: Packed, values: Floats, seed: int = 3) -> set[int]:
    """The places that are sent. values: none of them 0."""
    return set(np.flatnonzero(decoded(codec, values, seed)).tolist())


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4095, CHUNK, CHUNK + 1, CHUNK + 200, 70_001])
def test_the_largest_of_each_chunk_are_sent_as_bfloat16(size: int) -> None:
    values, codec = gradient(size), PACKED["topk"]
    expected: set[int] = set()
    for start in range(0, size, CHUNK):
        part = np.abs(values[start : start + CHUNK])
        expected |= {start + int(place) for place in np.argsort(-part, kind="stable")[: -(-part.size // SHARE)]}
    assert kept(codec, values) == expected
    counts = [-(-min(CHUNK, size - start) // SHARE) for start in range(0, size, CHUNK)]
    assert codec.bytes_of(size) == sum(2 * count + -(-12 * count // 8) for count in counts)
    places = sorted(expected)
    np.testing.assert_allclose(decoded(codec, values)[places], values[places], rtol=2**-8)


@pytest.mark.parametrize("where", ["ahead", "every 128th", "all"])
def test_of_equals_the_first_are_sent(where: str) -> None:
    values = np.full(CHUNK, 0.5, np.float32)
    large = {"ahead": slice(0, 100), "every 128th": slice(5, None, 128), "all": slice(None)}[where]
    values[large] = -2
    expected = np.argsort(-np.abs(values), kind="stable")[: CHUNK // SHARE]
    assert kept(PACKED["topk"], values) == set(expected.tolist())


def test_what_is_no_number_is_among_the_largest() -> None:
    values = gradient(2 * CHUNK)
    values[[5, 4000]] = np.nan, -np.inf
    found = decoded(PACKED["topk"], values)
    assert np.isnan(found[5]) and found[4000] == -np.inf and np.isfinite(found[CHUNK:]).all()


@pytest.mark.parametrize("size", [1, 63, 100, CHUNK, 2 * CHUNK + 130])
def test_one_of_each_64_neighbours_is_sent_by_chance(size: int) -> None:
    values, codec = gradient(size), PACKED["randomk"]
    places = sorted(kept(codec, values))
    assert [place // SHARE for place in places] == list(range(-(-size // SHARE)))
    np.testing.assert_allclose(decoded(codec, values)[places], values[places], rtol=2**-8)
    assert kept(codec, values, 5) == kept(codec, values, 5)


def test_each_element_has_the_same_chance() -> None:
    size, rounds = CHUNK + 3 * SHARE, 6400
    counts = np.zeros(size)
    for seed in range(rounds):
        counts[list(kept(PACKED["randomk"], np.ones(size, np.float32), 977 * seed))] += 1
    mean = rounds / SHARE
    assert np.abs(counts - mean).max() < 6 * np.sqrt(mean) and abs(np.var(counts) / mean - 1) < 0.1


def test_places_that_a_broken_peer_sent_stay_in_their_chunk() -> None:
    codec, total = PACKED["topk"], np.zeros(300, np.float32)
    guarded = total[:200]
    codec.add(guarded, np.full(codec.bytes_of(200), 0xFF, np.uint8), np.float32(1))
    assert not total[200:].any() and np.isfinite(guarded[:-1]).all()
