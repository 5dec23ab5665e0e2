"""What the merge phase measures of a block: inner products of what its contributors sent (optim/phases.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shoal.codec.codec import Codec
from shoal.codec.packed import Packed
from shoal.kernel import Encoded, Floats, kernel, read_only
from shoal.optim.loops import LANES

PIECE_ELEMENTS = 1 << 14  # decoded at a time, of each contributor: they stay in the core's cache. Whole records


def products(codec: Codec | Packed, sent: Sequence[Encoded], elements: int) -> tuple[float, ...]:
    """The inner product of each with itself and with those after it, in order, in float64: n (n + 1) / 2 for n."""
    pairs = [(one, other) for one in range(len(sent)) for other in range(one, len(sent))]
    sums = np.zeros((len(pairs), LANES))
    decoded = np.empty((len(sent), min(elements, PIECE_ELEMENTS)), np.float32)
    for start in range(0, elements, PIECE_ELEMENTS):
        stop = min(start + PIECE_ELEMENTS, elements)
        rows = [row[: stop - start] for row in decoded]
        for row, encoded in zip(rows, sent, strict=True):
            piece = codec.piece(encoded, start, stop) if isinstance(codec, Packed) else encoded[start:stop]
            codec.first(row, read_only(piece), np.float32(1))
        for total, (one, other) in zip(sums, pairs, strict=True):
            _multiply(total, read_only(rows[one]), read_only(rows[other]))
    return tuple(math.fsum(total.tolist()) for total in sums)


def warm() -> None:
    """Compile the loop (or load it from disk), so that no step waits for it."""
    one = read_only(np.zeros(1, np.float32))
    _multiply(np.zeros(LANES), one, one)


@kernel
def _multiply(sums: np.ndarray[tuple[int], np.dtype[np.float64]], one: Floats, other: Floats) -> None:
    """Adds one * other to LANES interleaved sums: the same bits however the elements are cut."""
    for start in range(0, one.size, LANES):
        for lane in range(min(LANES, one.size - start)):
            i = np.uintp(start + lane)
            sums[np.uintp(lane)] += np.float64(one[i]) * np.float64(other[i])
