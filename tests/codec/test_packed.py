"""Packed codecs lose what they say and no more, keep the mean where they round by chance, and decode in any pieces."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.codec.packed import BUCKET, PACKED, Packed
from shoal.kernel import Floats

SIZES = (0, 1, 2, 7, 255, BUCKET, BUCKET + 1, 5 * BUCKET - 3, 70_001)
# Bits an element, beside 32 for each bucket's scale.
BITS = {"int8": 8, "int4": 4, "e3m0": 4, "2bit": 2, "sign": 1}

every = pytest.mark.parametrize("codec", PACKED.values(), ids=PACKED)


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


@every
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
def test_pieces_of_whole_buckets_decode_as_the_whole(codec: Packed) -> None:
    values = gradient(3 * BUCKET + 17)
    packed, whole, weight = encoded(codec, values), decoded(codec, values), np.float32(0.3)
    total = np.ones(values.size, np.float32)
    for start, stop in ((0, BUCKET), (BUCKET, 3 * BUCKET), (3 * BUCKET, values.size)):
        codec.add(total[start:stop], packed[codec.offset(start) : codec.offset(stop)], weight)
    np.testing.assert_array_equal(total, np.float32(1) + weight * whole)


@every
def test_nothing_and_what_is_as_good_as_nothing_is_nothing(codec: Packed) -> None:
    for value in (0.0, -0.0, 1e-42):
        assert not decoded(codec, np.full(300, value, np.float32)).any()


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(codec: Packed, value: float) -> None:
    values = gradient(2 * BUCKET)
    values[5] = value
    found = decoded(codec, values)
    assert not np.isfinite(found[5]) and np.isfinite(found[BUCKET:]).all()
