"""Sums of contributions that were combined before their commit came, block by block.

A sum is used only in a commit that begins with the very contributions it was made of, weights
included, so it never changes a bit of what comes out. Its memory is taken when it is first needed.

Sums that the caches would not hold are written past them, each in one pass over its contributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from shoal.codec.codec import Codec
from shoal.codec.streamed import LINE_BYTES, aligned, copy_lines
from shoal.core.table import Table
from shoal.kernel import Floats, read_only, specialised
from shoal.optim import loops
from shoal.optim.loops import Gradient, Sources, Weights
from shoal.optim.passes import Contributions
from shoal.vocabulary import Weighted

LARGE_ELEMENTS = 4 << 20  # of a shard: its sums are out of the caches before the rule reads them
ROW_ELEMENTS = 4 << 10  # combined in the nearest cache before they are written past it
LINE_ELEMENTS = LINE_BYTES // 4


@dataclass
class Combined:
    """By position of a block: its float32 sum, how many of `contributors` that takes in, and whether any had it."""

    sums: Sequence[Floats]
    taken: list[int]
    filled: list[bool]
    contributors: tuple[Weighted, ...] = ()

    @classmethod
    def of(cls, table: Table, memory: Sequence[Floats] | None = None) -> Combined:
        """memory: where the sums are to lie, by position; None: anywhere."""
        sums = memory or [np.empty(block.elements, np.float32) for block in table.blocks]
        return cls(sums, [0] * len(sums), [False] * len(sums))

    @staticmethod
    def warm(table: Table) -> None:
        """Compile what writes the sums of this table (or load it from disk), so that no step waits for it."""
        total, scratch = np.zeros(1, np.float32), np.zeros(1, np.float32)
        plain = {codec for codec in table.pushes if isinstance(codec, Codec)}
        for codec in plain if table.elements >= LARGE_ELEMENTS else ():
            for count in (1, 2, 3):
                _write(codec, total, [(np.zeros(1, codec.item), np.float32(0))] * count, scratch)

    def expect(self, contributors: tuple[Weighted, ...]) -> None:
        """From here on sums are of these; what there is goes on if they begin as the last ones did."""
        if contributors[: len(self.contributors)] != self.contributors:
            self.taken, self.filled = [0] * len(self.sums), [False] * len(self.sums)
        self.contributors = contributors

    def add(self, table: Table, position: int, contributions: Contributions, scratch: Floats) -> None:
        """Take in what all contributors that are not in the block's sum yet have for it. scratch: any, in a cache."""
        seed = any(item.contributor.seeds for item in self.contributors)
        codec, total = (table.codecs if seed else table.pushes)[position], self.sums[position]
        large = table.elements >= LARGE_ELEMENTS and aligned(total)
        if contributions and not self.filled[position] and large and isinstance(codec, Codec):
            _write(codec, total, contributions, scratch)
            self.filled[position] = True
        else:
            for encoded, weight in contributions:
                combine = codec.add if self.filled[position] else codec.first
                combine(total, read_only(encoded), weight)
                self.filled[position] = True
        self.taken[position] = len(self.contributors)

    def agreed(self, contributors: tuple[Weighted, ...]) -> int:
        """How many contributors a commit has, from its first on, in common with the sums."""
        pairs = enumerate(zip(contributors, self.contributors, strict=False))
        return next((i for i, (one, other) in pairs if one != other), min(len(contributors), len(self.contributors)))


def _write(codec: Codec, total: Floats, contributions: Contributions, scratch: Floats) -> None:
    """total = the sum of these; what it held before is not read. Of three or more, all but the last are added up in
    scratch, a piece at a time."""
    arrays = [read_only(encoded) for encoded, _ in contributions]
    weights = tuple(weight for _, weight in contributions)
    if len(arrays) < 3:
        _writes(codec)[len(arrays) - 1](total, tuple(arrays), weights)
        return
    for start in range(0, total.size, scratch.size):
        piece = slice(start, min(start + scratch.size, total.size))
        before = scratch[: piece.stop - start]
        combine = codec.first
        for array, weight in zip(arrays[:-1], weights[:-1], strict=True):
            combine(before, array[piece], weight)
            combine = codec.add
        _writes(codec)[-1](total[piece], (before, arrays[-1][piece]), weights[-1:])


@cache
def _writes(codec: Codec) -> tuple[Callable[[Floats, Sources, Weights], None], ...]:
    """The loops that write the sum of one contribution, of two, and of what is summed already and the last."""
    return tuple(_write_loop(codec.widen, gradient, copy_lines) for gradient in (loops.one, loops.two, loops.more))


def _write_loop(
    widen: Callable[[Any], Any], gradient: Gradient, copy: Callable[[Any, Any], Any]
) -> Callable[[Floats, Sources, Weights], None]:
    """total (elements,), aligned to a line: written past the caches, a row at a time."""

    def write(total: Floats, sources: Sources, weights: Weights) -> None:
        row = np.empty(ROW_ELEMENTS, np.float32)
        lines, into = row.view(np.uint32), total.view(np.uint32)
        for start in range(0, total.size, ROW_ELEMENTS):
            length = min(ROW_ELEMENTS, total.size - start)
            for lane in range(length):  # unsigned: an index that might be negative would not vectorize
                row[np.uintp(lane)] = gradient(widen, sources, weights, np.uintp(start + lane))
            whole = length // LINE_ELEMENTS * LINE_ELEMENTS
            copy(into[start : start + whole], lines[:whole])
            for lane in range(whole, length):
                total[start + lane] = row[lane]

    return specialised(write)
