"""Parameters on their way in, of a table with pull codecs: increments, and what they are added to.

The servers' published copy (core/increments.py) is kept here to the bit, in memory that only this file writes: what a
script does to its model's parameters is no base for the next increment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.codec.codec import FLOAT32, PIECE_ELEMENTS, pull_codec
from shoal.kernel import Floats, read_only
from shoal.placement import cut
from shoal.vocabulary import Block, TableSpec
from shoal.wire.gradient import WHOLE, Parameters

Bytes = npt.NDArray[np.uint8]


class Decoder:
    """The copies of one worker, of a table of which some tensors have a pull codec. On the loop."""

    def __init__(self, spec: TableSpec) -> None:
        self._blocks = cut(spec)
        self._codecs = [pull_codec(tensor) for tensor in spec.tensors]
        self._copies: dict[int, Floats] = {
            index: np.zeros(tensor.elements, np.float32) for index, tensor in enumerate(spec.tensors) if tensor.pull
        }
        self._landed: dict[Parameters, list[tuple[int, int, memoryview]]] = {}  # block, increments or WHOLE, bytes

    def decodes(self, block: int) -> bool:
        """Whether this block comes by way of a copy."""
        return self._blocks[block].tensor in self._copies

    def places(self, parameters: Parameters) -> dict[int, memoryview]:
        """By block, where the bytes of those that it decodes land."""
        sent = [(block, count) for block, count in parameters.parts if count and self.decodes(block)]
        parts = self._landed[parameters] = [(block, count, self._place(block, count)) for block, count in sent]
        return {block: place for block, _, place in parts}

    def take(self, parameters: Parameters, bound: Sequence[Bytes]) -> None:
        """All has landed: the parameters, by tensor as their bytes, are what the servers published."""
        for block, count, place in self._landed.pop(parameters, []):
            item, width, copy = self._blocks[block], FLOAT32.bytes_of(1), self._copy(block)
            target = bound[item.tensor][item.start * width : item.stop * width].view(np.float32)
            if count == WHOLE:
                target[:] = copy
            else:
                self._add(block, copy, np.frombuffer(place, np.uint8), count, target)

    def forget(self) -> None:
        """What has begun to land is not taken any more."""
        self._landed.clear()

    def _place(self, block: int, count: int) -> memoryview:
        if count == WHOLE:
            return self._copy(block).view(np.uint8).data
        codec = self._codecs[self._blocks[block].tensor]
        assert codec is not None, "only such blocks have increments"
        return np.empty(count * codec.bytes_of(self._blocks[block].elements), np.uint8).data

    def _add(self, block: int, copy: Floats, encoded: Bytes, count: int, target: Floats) -> None:
        """The increments lie one after the other. target: what the copy is then, too."""
        codec = self._codecs[self._blocks[block].tensor]
        assert codec is not None, "only such blocks have increments"
        increments = [increment.view(codec.item) for increment in np.split(encoded, count)]
        for start in range(0, copy.size, PIECE_ELEMENTS):
            piece = slice(start, min(start + PIECE_ELEMENTS, copy.size))
            for increment in increments:
                part = increment[codec.offset(piece.start) : codec.offset(piece.stop)]
                codec.add(copy[piece], read_only(part), np.float32(1))
            target[piece] = copy[piece]

    def _copy(self, block: int) -> Floats:
        item: Block = self._blocks[block]
        return self._copies[item.tensor][item.start : item.stop]
