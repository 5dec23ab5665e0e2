"""A shard's numbers: float32 masters, the rule's state arrays, and each block's count of updates.

Each kind lies in one piece of memory, allocated and touched once; a block is a view into each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shoal.kernel import Floats
from shoal.tables.layout import lay_out


class Dense:
    """The arrays of a shard's blocks, by position; all zeros at first.

    elements: of each block; states: how many state arrays each block needs; given: the parameters of
    these positions lie here, in zeroed memory of the caller's; places: where in a state array each block
    lies, in bytes, if it is to be so; published: of which positions workers hold a copy of its own.
    """

    parameters: tuple[Floats, ...]  # (elements of the block,) each
    states: tuple[tuple[Floats, ...], ...]  # the state arrays of each block, (elements of the block,) each
    layers: tuple[Floats, ...]  # the memory of the first state of all blocks, of the second, ...
    published: tuple[Floats | None, ...]  # what workers hold, (elements of the block,) each; None: the parameters
    steps: npt.NDArray[np.int64]  # (blocks,) updates so far

    def __init__(
        self,
        elements: Sequence[int],
        states: Sequence[int],
        given: Mapping[int, Floats] = {},
        places: Sequence[slice] | None = None,
        published: Collection[int] = (),
    ) -> None:
        own = [0 if position in given else 4 * length for position, length in enumerate(elements)]
        slices, total_bytes = lay_out(own)
        memory = _zeros(total_bytes)
        arrays = [memory[piece.start // 4 : piece.stop // 4] for piece in slices]
        self.parameters = tuple(given.get(position, array) for position, array in enumerate(arrays))
        if places is None:
            places, total_bytes = lay_out(4 * length for length in elements)
        else:
            total_bytes = places[-1].stop if places else 0
        self.layers = tuple(_zeros(total_bytes) for _ in range(max(states, default=0)))
        self.states = tuple(
            tuple(layer[place.start // 4 : place.stop // 4] for layer in self.layers[:count])
            for place, count in zip(places, states, strict=True)
        )
        copies, copied_bytes = lay_out(4 * length * (position in published) for position, length in enumerate(elements))
        memory = _zeros(copied_bytes)
        self.published = tuple(
            memory[piece.start // 4 : piece.stop // 4] if position in published else None
            for position, piece in enumerate(copies)
        )
        self.steps = np.zeros(len(elements), np.int64)


def _zeros(size_bytes: int) -> Floats:
    memory = np.empty(-(-size_bytes // 4), np.float32)
    memory.fill(0)  # np.zeros would leave the first touch of each page to the first step
    return memory
