"""Where a table's blocks lie in memory that workers and servers of one host share.

Everyone computes the same layout, nobody sends it. Each server's parameters lie in an arena of this
layout, of which only the server's own part is ever touched. A worker maps those parts side by side, so a tensor is one
run of memory whichever servers hold it. A worker's gradients lie in an arena of the same layout, unless they are
packed: then block after block, as tight as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from shoal.arena import PAGE_BYTES, Range
from shoal.codec.codec import packs, pulls, push_bytes
from shoal.placement import blocks_of_tensor, cut, owned
from shoal.tables.layout import ALIGNMENT_BYTES, lay_out
from shoal.vocabulary import ITEM_BYTES, TableSpec


@dataclass(frozen=True)
class Shared:
    """Byte positions, in the tensors' wire dtypes.

    blocks: by block. tensors: by tensor. parts: by shard, whole pages with nobody else's blocks in
    them. Page i of an arena bears the stamp of shard i: an int64, odd while its parameters change.
    pushed: by block, of gradients in a worker's arena, which has pushed_bytes.
    """

    blocks: tuple[slice, ...]
    tensors: tuple[slice, ...]
    parts: tuple[Range, ...]
    size_bytes: int
    pushed: tuple[slice, ...]
    pushed_bytes: int


@lru_cache(maxsize=16)
def lay_out_shared(spec: TableSpec, shards: int) -> Shared | None:
    """The layout; None where a tensor would not be one run of memory, for its pieces end within a page, and where
    workers hold less than the parameters (a pull codec)."""
    if pulls(spec):
        return None
    owner = {block: shard for shard in range(shards) for block in owned(spec, shard, shards)}
    ends = [shards * PAGE_BYTES] * shards
    starts = list(ends)
    blocks: list[slice] = []
    tensors: list[slice] = []
    position, last = shards * PAGE_BYTES, -1
    for tensor, pieces in zip(spec.tensors, blocks_of_tensor(spec), strict=True):
        fresh = len(pieces) > 1 or (bool(pieces) and owner[pieces[0]] != last)
        position = _up(position, PAGE_BYTES if fresh else ALIGNMENT_BYTES)
        first = position
        for index in pieces:
            if owner[index] != last:
                if position % PAGE_BYTES:
                    return None
                last = owner[index]
                starts[last] = position
            stop = position + cut(spec)[index].elements * ITEM_BYTES[tensor.dtype]
            blocks.append(slice(position, stop))
            position = stop
            ends[last] = _up(position, PAGE_BYTES)
        tensors.append(slice(first, position))
    parts = tuple(Range(start, stop) for start, stop in zip(starts, ends, strict=True))
    size_bytes = _up(position, PAGE_BYTES)
    pushed, pushed_bytes = lay_out_packed(spec) if packs(spec) else (tuple(blocks), size_bytes)
    return Shared(tuple(blocks), tuple(tensors), parts, size_bytes, pushed, pushed_bytes)


def lay_out_packed(spec: TableSpec) -> tuple[tuple[slice, ...], int]:
    """By block, where its gradient lies as it travels, and the size of the whole in bytes."""
    return lay_out(push_bytes(spec, block) for block in cut(spec))


def _up(position: int, step: int) -> int:
    return -(-position // step) * step
