"""PowerSGD: what is sent is the best of its rank as steps go on, from blocks that end in the middle of a row, too."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.codec.codec import PACKED, PUSHES, push_codec
from shoal.codec.lowrank import RANKS, LowRank, low_rank
from shoal.kernel import Floats
from shoal.optim import SGD
from shoal.placement import cut
from shoal.runtime.encoder import Encoder
from shoal.vocabulary import PolicySpec, TableSpec, TensorSpec

COLUMNS = 48
RULE = SGD(lr=0.1)


def of_rank(rank: int, rows: int = 96, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    product = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, COLUMNS))
    return product.astype(np.float32).reshape(-1)


def decoded(codec: LowRank, encoded: np.ndarray, elements: int) -> Floats:
    found = np.full(elements, np.nan, np.float32)
    codec.first(found, encoded, np.float32(1))
    return found


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize(("column", "elements"), [(0, 96 * COLUMNS), (0, 1000), (17, 3000), (47, 1), (5, 40)])
def test_a_matrix_of_this_rank_is_sent_as_it_is(name: str, column: int, elements: int) -> None:
    codec = low_rank(name, COLUMNS)
    values = of_rank(RANKS[name])[column : column + elements].copy()
    if column:  # a row that is cut is of another rank
        values[: COLUMNS - column] = 0
    values[(elements + column) // COLUMNS * COLUMNS - column :] = 0
    encoded = np.full(codec.bytes_of(elements), 0xAB, np.uint8)
    codec.encode_from(encoded, values, column, np.zeros(RANKS[name] * COLUMNS, np.float32), seed=3)
    np.testing.assert_allclose(decoded(codec, encoded, elements), values, atol=1e-4)


def test_from_where_it_was_it_comes_to_the_largest_directions() -> None:
    codec = low_rank("powersgd2", COLUMNS)
    values = np.random.default_rng(1).standard_normal((96, COLUMNS)).astype(np.float32)
    u, s, v = np.linalg.svd(values)
    s[2:] *= 0.5
    values = ((u[:, :COLUMNS] * s) @ v).astype(np.float32).reshape(-1)
    best = np.sqrt(np.sum(s[2:] ** 2))
    encoded, start = np.zeros(codec.bytes_of(values.size), np.uint8), np.zeros(2 * COLUMNS, np.float32)
    off = []
    for _ in range(40):
        start = codec.encode_from(encoded, values, 0, start, seed=5)
        off.append(float(np.linalg.norm(decoded(codec, encoded, values.size) - values)))
    assert off[0] > 1.02 * best and off[-1] < 1.002 * best


@pytest.mark.parametrize("column", [0, 11])
def test_pieces_decode_as_the_whole(column: int) -> None:
    codec, size, weight = low_rank("powersgd4", COLUMNS), 2000, np.float32(0.3)
    encoded = np.zeros(codec.bytes_of(size), np.uint8)
    codec.encode_from(encoded, of_rank(9)[:size], column, np.zeros(4 * COLUMNS, np.float32), seed=5)
    whole, total = decoded(codec, encoded, size), np.ones(size, np.float32)
    for start, stop in ((0, 30), (30, 37), (37, 1500), (1500, size)):
        codec.add(total[start:stop], codec.piece(encoded, start, stop), weight)
    np.testing.assert_array_equal(total, np.float32(1) + weight * whole)


def test_nothing_is_nothing_and_no_end() -> None:
    codec = low_rank("powersgd2", COLUMNS)
    encoded, values = np.zeros(codec.bytes_of(960), np.uint8), np.zeros(960, np.float32)
    start = codec.encode_from(encoded, values, 0, np.ones(2 * COLUMNS, np.float32), seed=5)
    assert not decoded(codec, encoded, 960).any()
    values = of_rank(2)[:960]
    for _ in range(2):
        start = codec.encode_from(encoded, values, 0, start, seed=5)
    np.testing.assert_allclose(decoded(codec, encoded, 960), values, atol=1e-3)


def test_a_column_that_a_broken_peer_sent_stays_in_its_matrix() -> None:
    codec = low_rank("powersgd1", COLUMNS)
    encoded = np.full(codec.bytes_of(960), 0x7F, np.uint8)
    encoded[4:] = 0
    assert not decoded(codec, encoded, 960).any()
    assert codec.piece(encoded, 500, 960).size <= encoded.size


def test_what_is_no_matrix_worth_it_travels_as_it_is() -> None:
    for shape in ((), (5000,), (6, 6), (3000, 2), (2, 3000)):
        assert push_codec(TensorSpec("t", shape, "bfloat16", 0, "powersgd2")).name == "bfloat16"
    conv = push_codec(TensorSpec("t", (64, 32, 3, 3), "float32", 0, "powersgd2"))
    assert isinstance(conv, LowRank) and conv.columns == 288
    assert not PACKED.keys() & RANKS.keys() and set(RANKS) < set(PUSHES)


@pytest.mark.parametrize("block_elements_max", [1 << 20, 1000])
def test_what_was_sent_adds_up_to_what_was_meant(block_elements_max: int) -> None:
    """From gradients of a low rank and noise. Blocks of 1000 elements end in the middle of rows."""
    tensor = TensorSpec("t", (96, COLUMNS), "float32", 0, "powersgd2")
    spec = TableSpec((tensor,), RULE.name, (RULE.settings,), PolicySpec("sync"), block_elements_max=block_elements_max)
    encoder, codec = Encoder(spec, None), push_codec(tensor)
    meant, sent, gaps = np.zeros(tensor.elements), np.zeros(tensor.elements), []
    for clock in range(1, 301):
        noise = np.random.default_rng(clock).standard_normal(tensor.elements).astype(np.float32)
        values = of_rank(2) + noise
        encoder.encode(0, values.view(np.uint8), worker=0, clock=clock)
        meant += values
        for block in cut(spec):
            found = np.empty(block.elements, np.float32)
            codec.first(found, np.frombuffer(encoder.block(block.index), np.uint8), np.float32(1))
            sent[block.start : block.stop] += found
        encoder.seal(0, clock)
        encoder.end(committed=True)
        gaps.append(np.linalg.norm(meant - sent))
    assert np.mean(gaps[200:]) < 1.2 * np.mean(gaps[100:200]), "the residual does not grow"
    assert gaps[-1] < 0.05 * np.linalg.norm(meant)
