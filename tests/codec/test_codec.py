"""Wire formats decode exactly and round as torch does, for every pattern of bits that matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shoal.codec.codec import CODECS, codec_for
from shoal.errors import ConfigurationError

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_torch(encoded: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(encoded.view(np.uint8)).view(TORCH[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_half_decodes_exactly(dtype: str) -> None:
    encoded = np.arange(1 << 16, dtype=np.uint16)
    decoded = np.empty(1 << 16, np.float32)
    CODECS[dtype].first(decoded, encoded, np.float32(1))
    np.testing.assert_array_equal(decoded, as_torch(encoded, dtype).float().numpy())


@pytest.mark.parametrize("dtype", TORCH)
def test_encode_rounds_as_torch(dtype: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    halves = np.arange(1 << 16, dtype=np.uint16)
    neighbours = as_torch(halves, "float16").float().numpy()
    ties = (neighbours[:-1] + neighbours[1:]) / 2  # exactly between two halves: the even one wins
    edges = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, -65536, 2**-24, 2**-25, 2**-26])
    near = np.nextafter(np.concatenate([ties, edges]), np.float32(0))
    everything = np.concatenate([values, neighbours, ties, edges, near])
    encoded = np.empty(everything.size, CODECS[dtype].item)
    CODECS[dtype].encode(encoded, everything)
    wanted = torch.from_numpy(everything).to(TORCH[dtype]).float().numpy()
    got = as_torch(encoded, dtype).float().numpy()
    np.testing.assert_array_equal(got, wanted)  # NaN equals NaN here
    np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(wanted[~np.isnan(wanted)]))


@pytest.mark.parametrize("dtype", TORCH)
def test_weighted_sums_are_float32(dtype: str) -> None:
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(1001, generator=generator).to(TORCH[dtype]) for _ in range(3)]
    weights = np.float32([0.5, 0.3, 0.2])
    total = np.full(1001, np.nan, np.float32)
    codec = CODECS[dtype]
    for position, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        combine = codec.first if position == 0 else codec.add
        combine(total, part.view(torch.uint8).numpy().view(codec.item), weight)
    wanted = parts[0].float() * float(weights[0]) + parts[1].float() * float(weights[1])
    wanted += parts[2].float() * float(weights[2])
    np.testing.assert_array_equal(total, wanted.numpy())


@pytest.mark.parametrize("past_caches", [False, True])
@pytest.mark.parametrize("dtype", TORCH)
def test_copy_finite_finds_the_one_that_is_not(dtype: str, past_caches: bool) -> None:
    codec = CODECS[dtype]
    bits = np.dtype(np.uint32 if dtype == "float32" else np.uint16)
    largest = torch.finfo(TORCH[dtype]).max
    ordinary = torch.tensor([1.0, -0.0, largest, -largest, 2**-24], dtype=TORCH[dtype]).view(torch.uint8).numpy()
    odd = torch.tensor([math.nan, -math.nan, math.inf, -math.inf], dtype=TORCH[dtype]).view(torch.uint8).numpy()
    for size in range(71):
        source = np.resize(ordinary.view(bits), size)
        memory = np.full(71 + 64, 7, bits)  # of which `size` elements are the destination, on a line of their own
        first = -memory.ctypes.data % 64 // bits.itemsize
        destination = memory[first : first + size]
        assert codec.copy_finite(destination, source, past_caches)
        assert set(memory[:first]) | set(memory[first + size :]) <= {7}, "nothing beside it is touched"
        np.testing.assert_array_equal(destination, source)
        for position in range(size):
            for one in odd.view(bits):
                spoilt = source.copy()
                spoilt[position] = one
                assert not codec.copy_finite(destination.view(codec.item), spoilt.view(codec.item), past_caches)
                assert destination.tobytes() == spoilt.tobytes()


def test_bytes_and_unknown_dtypes() -> None:
    assert [codec_for(dtype).bytes_of(10) for dtype in TORCH] == [40, 20, 20]
    with pytest.raises(ConfigurationError, match=r"'int64' does not travel; known: float32, bfloat16, float16"):
        codec_for("int64")
