"""A shard's numbers: float32 masters, the rule's state arrays, and each block's count of updates.

Each kind lies in one arena, allocated and touched once; a block is a view into each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from shoal.kernel import Floats
from shoal.tables.layout import lay_out


class Dense:
    """The arrays of a shard's blocks, by position; all zeros at first.

    elements: of each block; states: how many state arrays each block needs.
    """

    parameters: tuple[Floats, ...]  # (elements of the block,) each
    states: tuple[tuple[Floats, ...], ...]  # the state arrays of each block, (elements of the block,) each
    steps: npt.NDArray[np.int64]  # (blocks,) updates so far

    def __init__(self, elements: Sequence[int], states: Sequence[int]) -> None:
        self.parameters = _arena(elements)
        layers = [
            _arena(length if count > layer else 0 for length, count in zip(elements, states, strict=True))
            for layer in range(max(states, default=0))
        ]
        self.states = tuple(tuple(layer[position] for layer in layers[:count]) for position, count in enumerate(states))
        self.steps = np.zeros(len(elements), np.int64)


def _arena(elements: Iterable[int]) -> tuple[Floats, ...]:
    slices, total_bytes = lay_out(4 * length for length in elements)
    memory = np.empty(total_bytes, np.uint8)
    memory.fill(0)  # np.zeros would leave the first touch of each page to the first step
    return tuple(memory[piece].view(np.float32) for piece in slices)
