"""Sums of contributions that were combined before their commit came, block by block.

A sum is used only in a commit that begins with the very contributions it was made of, weights
included, so it never changes a bit of what comes out. Its memory is taken when it is first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.core.table import Table
from shoal.kernel import Floats, read_only
from shoal.optim.passes import Contributions
from shoal.vocabulary import Weighted


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

    def expect(self, contributors: tuple[Weighted, ...]) -> None:
        """From here on sums are of these; what there is goes on if they begin as the last ones did."""
        if contributors[: len(self.contributors)] != self.contributors:
            self.taken, self.filled = [0] * len(self.sums), [False] * len(self.sums)
        self.contributors = contributors

    def add(self, table: Table, position: int, contributions: Contributions) -> None:
        """Take in what all contributors that are not in the block's sum yet have for it."""
        codec, total = table.codecs[position], self.sums[position]
        for encoded, weight in contributions:
            combine = codec.add if self.filled[position] else codec.first
            combine(total, read_only(encoded), weight)
            self.filled[position] = True
        self.taken[position] = len(self.contributors)

    def agreed(self, contributors: tuple[Weighted, ...]) -> int:
        """How many contributors a commit has, from its first on, in common with the sums."""
        pairs = enumerate(zip(contributors, self.contributors, strict=False))
        return next((i for i, (one, other) in pairs if one != other), min(len(contributors), len(self.contributors)))
