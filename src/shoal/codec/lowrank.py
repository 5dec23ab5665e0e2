"""PowerSGD: a matrix as the product of two narrow ones (Vogels et al., arXiv 1905.13727, algorithm 1).

One step of power iteration a gradient M (rows, columns): P = M Q, made orthonormal, then Q = M^T P; sent is P Q^T. Q is
where the next step begins (warm start), so that over steps the largest directions of what is owed are found. The paper
averages P and Q over workers in two rounds; here each worker sends its own, servers decode each as they combine, and
the sum of P_k Q_k^T is of a rank up to the number of workers times theirs.

A tensor is a matrix of its first dimension by all others, as in the paper. It is cut into blocks that need not begin
or end with a row: a block is the matrix of all rows that it has a part of, with zeros where it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from shoal.codec.arrays import keep, sum_up
from shoal.codec.packed import Decode, Packed
from shoal.kernel import Bytes, Floats, kernel, read_only, specialised
from shoal.vocabulary import TensorSpec

RANKS = {f"powersgd{rank}": rank for rank in (1, 2, 4, 8)}
WORTH = 4  # a tensor is sent so where that takes at most this part of its float32
BLOCK_ELEMENTS = 1 << 20

LANES = 64  # sums of one product that are added up side by side, in vector registers
VANISHED = 1e-6  # of a column's length: what is left is rounding


@dataclass(frozen=True)
class LowRank(Packed):
    """Encoded, in words of 4 bytes: the column of the block's first element; Q (rank, columns); P (rows, rank).

    rows: as many as a block of so many elements has a part of at most.
    """

    rank: int
    columns: int

    def bytes_of(self, elements: int) -> int:
        return 4 * (1 + self.rank * (self.columns + self._rows(self.columns - 1, elements)))

    def encode(self, encoded: Bytes, values: Floats, seed: int) -> None:
        """Of a block that begins with a row, from a cold start."""
        self.encode_from(encoded, values, 0, np.zeros(self.rank * self.columns, np.float32), seed)

    def encode_from(self, encoded: Bytes, values: Floats, column: int, start: Floats, seed: int) -> Floats:
        """encoded = values, of which the first is in this column. start: Q (rank * columns,) to begin from; of zeros:
        by chance. Returns the Q to begin the next from."""
        words, q_words = encoded.view(np.float32), self.rank * self.columns
        if not start.any():
            start = _by_chance(q_words, seed)
        words[:1].view(np.int32)[0] = column
        q, p = words[1 : 1 + q_words], words[1 + q_words :]
        q[:], p[:] = 0, 0
        _project(p, values, start, column, self.rank, self.columns)
        _make_orthonormal(p, self.rank)
        _collect(q, values, p, column, self.rank, self.columns)
        found = q.reshape(self.rank, self.columns).copy()
        lost = ~p.reshape(-1, self.rank).any(axis=0)  # of a matrix of less rank: look elsewhere the next time
        found[lost] = _by_chance(q_words, seed + 1).reshape(found.shape)[lost]
        return found.reshape(-1)

    def piece(self, encoded: Bytes, start: int, stop: int) -> Bytes:
        words = encoded.view(np.float32)
        first, q_words = self._column(words) + start, self.rank * self.columns
        column, row = first % self.columns, first // self.columns
        p = words[1 + q_words :][self.rank * row : self.rank * (row + self._rows(column, stop - start))]
        return np.concatenate((np.array([column], np.int32).view(np.float32), words[1 : 1 + q_words], p)).view(np.uint8)

    @cached_property
    def first(self) -> Decode:
        return self._decode(_loop(keep))

    @cached_property
    def add(self) -> Decode:
        return self._decode(_loop(sum_up))

    def _decode(self, loop: Callable[..., None]) -> Decode:
        def decode(total: Floats, encoded: Bytes, weight: np.float32) -> None:
            words = read_only(encoded).view(np.float32)
            loop(total, words[1:], weight, self._column(words), self.rank, self.columns)

        return decode

    def _column(self, words: Floats) -> int:
        return min(max(int(words[:1].view(np.int32)[0]), 0), self.columns - 1)  # whoever sent it

    def _rows(self, column: int, elements: int) -> int:
        """How many rows a block has a part of that begins in this column."""
        return -(-(column + elements) // self.columns)


@cache
def low_rank(name: str, columns: int) -> LowRank:
    """One object for all tensors so wide."""
    return LowRank(name, True, RANKS[name], columns)


def low_rank_of(tensor: TensorSpec) -> LowRank | None:
    """The codec of this tensor's gradients; None: it saves too little of so small or so narrow a one."""
    if len(tensor.shape) < 2 or not tensor.elements:
        return None
    codec = low_rank(tensor.push, tensor.elements // tensor.shape[0])
    elements = min(tensor.elements, BLOCK_ELEMENTS)
    return codec if WORTH * codec.bytes_of(elements) <= 4 * elements else None


def _by_chance(count: int, seed: int) -> Floats:
    return np.random.default_rng(seed & 0xFFFFFFFF).standard_normal(count, np.float32)


# Not by a library's products: their bits depend on the processor and its threads, which also get in each other's way.


@kernel
def _project(p: Floats, values: Floats, q: Floats, column: int, rank: int, columns: int) -> None:
    """P = M Q."""
    sums = np.empty(LANES, np.float32)
    place, row = 0, 0
    while place < values.size:
        length = min(columns - column, values.size - place)
        for k in range(rank):
            first = k * columns + column
            sums[:] = np.float32(0)
            for start in range(0, length, LANES):
                if start + LANES <= length:
                    for i in range(LANES):
                        at = np.uintp(start + i)
                        sums[np.uintp(i)] += values[np.uintp(place) + at] * q[np.uintp(first) + at]
                else:
                    for i in range(start, length):
                        sums[i - start] += values[place + i] * q[first + i]
            total = np.float32(0)
            for i in range(LANES):
                total += sums[i]
            p[row + k] = total
        place, row, column = place + length, row + rank, 0


@kernel
def _make_orthonormal(p: Floats, rank: int) -> None:
    """Gram and Schmidt's way, in float64, as in the paper; a column that depends on those before becomes 0."""
    rows = p.size // rank
    for k in range(rank):
        before = 0.0
        for row in range(rows):
            before += np.float64(p[row * rank + k]) ** 2
        for other in range(k):
            along = 0.0
            for row in range(rows):
                along += np.float64(p[row * rank + k]) * np.float64(p[row * rank + other])
            for row in range(rows):
                p[row * rank + k] = np.float32(p[row * rank + k] - along * p[row * rank + other])
        length = 0.0
        for row in range(rows):
            length += np.float64(p[row * rank + k]) ** 2
        vanished = length <= before * VANISHED**2
        for row in range(rows):
            p[row * rank + k] = np.float32(0) if vanished else np.float32(p[row * rank + k] / np.sqrt(length))


@kernel
def _collect(q: Floats, values: Floats, p: Floats, column: int, rank: int, columns: int) -> None:
    """Q += M^T P."""
    place, row = 0, 0
    while place < values.size:
        length = min(columns - column, values.size - place)
        for k in range(rank):
            factor, first = p[row + k], k * columns + column
            for i in range(length):
                q[np.uintp(first + i)] += factor * values[np.uintp(place + i)]
        place, row, column = place + length, row + rank, 0


@cache
def _loop(join: Any) -> Callable[..., None]:
    """total = P Q^T, joined: the same bits for a piece as for the whole."""

    def decode(total: Floats, words: Floats, weight: np.float32, column: int, rank: int, columns: int) -> None:
        values = np.empty(columns, np.float32)
        place, p = 0, rank * columns
        while place < total.size:
            length = min(columns - column, total.size - place)
            for i in range(length):
                values[np.uintp(i)] = words[p] * words[np.uintp(column + i)]
            for k in range(1, rank):
                factor, q = words[p + k], k * columns + column
                for i in range(length):
                    values[np.uintp(i)] += factor * words[np.uintp(q + i)]
            for i in range(length):
                join(total, np.uintp(place + i), weight * values[np.uintp(i)])
            place, p, column = place + length, p + rank, 0

    return specialised(decode)
