"""Pull codecs: what a shard's workers hold of its blocks, and how that has changed, in few bits.

Of a tensor with a pull codec, workers hold a published copy p of the parameters x. With each commit that changes a
block, C(x - p) joins its increments, and p += C(x - p): what the codec loses now is in the next difference (error
compensation on the server's side: Tang et al., arXiv 1905.05957, algorithm 1; in this form, of a copy that both sides
keep, Richtarik et al., arXiv 2106.05203, eq. 8). A worker that holds some version is sent the increments since, and
one that does not, p itself; either way it has the same bits. p is a state of the block as the rule's are: replicas
and snapshots have it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shoal.codec.codec import FLOAT32, Codec, chance_of, encode, pull_codec
from shoal.codec.packed import Recorded
from shoal.core.table import Table
from shoal.kernel import Floats, read_only
from shoal.tables.layout import lay_out
from shoal.tables.pool import Pool
from shoal.wire.gradient import WHOLE

KEPT_SHARE = 0.5  # increments are kept up to this share of what the blocks take
SERVERS = -1  # who chance depends on, where a worker's number stands for gradients


@dataclass
class Increment:
    """Of all blocks that one commit changed."""

    version: int
    memory: memoryview
    positions: set[int] = field(default_factory=set)


class Increments:
    """Of one shard's table. begin, encode and end are a task's, the rest the loop's: between tasks, and `since` also of
    blocks that the task has encoded."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.codecs: list[Codec | Recorded | None] = [pull_codec(table.spec.tensors[b.tensor]) for b in table.blocks]
        sizes = [
            0 if codec is None else codec.bytes_of(block.elements)
            for codec, block in zip(self.codecs, table.blocks, strict=True)
        ]
        self._slices, size_bytes = lay_out(sizes)
        whole_bytes = 4 * sum(b.elements for codec, b in zip(self.codecs, table.blocks, strict=True) if codec)
        self._kept_max = max(1, int(KEPT_SHARE * whole_bytes / size_bytes)) if size_bytes else 0
        self._pool = Pool(size_bytes)
        self._kept: tuple[Increment, ...] = ()  # replaced, not changed: the loop may be looking
        count = len(table.blocks)
        self._changed = np.zeros(count, np.int64)  # by position: the version of the last change
        self._whole = np.zeros(count, np.int64)  # from this version on, all increments are kept
        self._next: Increment | None = None

    def reset(self, version: int, position: int | None = None) -> None:
        """Blocks (all of them without a position) were set at this version, or before, otherwise than by a commit."""
        where = slice(None) if position is None else position
        self._changed[where] = self._whole[where] = version

    def publish(self) -> None:
        """Workers hold the parameters as they are."""
        for parameters, published in zip(self._table.dense.parameters, self._table.dense.published, strict=True):
            if published is not None:
                published[:] = parameters

    # --- one commit ---------------------------------------------------------------------------------

    def begin(self, version: int) -> None:
        memory = self._pool.take() if self._pool.arena_bytes else memoryview(b"")
        self._next = Increment(version, memory)
        self._kept = (*self._kept, self._next)

    def encode(self, position: int, scratch: Floats) -> None:
        """A block has changed. Any thread, each with a scratch of its own: (elements at a time,) float32."""
        assert self._next is not None, "between begin() and end()"
        self._changed[position] = self._next.version
        codec, published = self.codecs[position], self._table.dense.published[position]
        if codec is None or published is None:
            return
        parameters, encoded = self._table.dense.parameters[position], self._encoded(self._next, position)
        # Not on the version: entries of the log that change no parameter come and go with faults.
        updates = int(self._table.dense.steps[position])
        chance = chance_of(SERVERS, updates, self._table.blocks[position].index)
        for start in range(0, parameters.size, scratch.size):
            stop = min(start + scratch.size, parameters.size)
            difference = scratch[: stop - start]
            np.subtract(parameters[start:stop], published[start:stop], out=difference)
            piece = encoded[codec.offset(start) : codec.offset(stop)]
            encode(codec, piece, difference, chance + start)
            codec.add(published[start:stop], read_only(piece), np.float32(1))
        self._next.positions.add(position)

    def end(self) -> None:
        assert self._next is not None, "after begin()"
        kept = self._kept if self._next.positions else self._kept[:-1]
        self._next = None
        excess = max(0, len(kept) - self._kept_max)
        for gone in kept[:excess]:
            self._whole[list(gone.positions)] = gone.version
        self._kept = kept[excess:]

    # --- what is sent ---------------------------------------------------------------------------------

    def since(self, block: int, base: int) -> tuple[int, list[memoryview]]:
        """How many increments the block has had since that version, and these; WHOLE where that is less to send, or
        they are not kept."""
        position = self._table.position[block]
        if self._changed[position] <= base:
            return 0, []
        if self.codecs[position] is None or base < self._whole[position]:
            return WHOLE, []
        place = self._slices[position]
        found = [item.memory[place] for item in self._kept if item.version > base and position in item.positions]
        whole_bytes = FLOAT32.bytes_of(self._table.blocks[position].elements)
        return (len(found), found) if len(found) * (place.stop - place.start) < whole_bytes else (WHOLE, [])

    def _encoded(self, increment: Increment, position: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        codec = self.codecs[position]
        assert codec is not None, "only blocks with a codec have increments"
        return np.frombuffer(increment.memory[self._slices[position]], codec.item)
