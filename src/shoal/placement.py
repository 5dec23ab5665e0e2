"""Where things live: tensors are cut into blocks, blocks map to slots, slots to shards.

The cut depends on the table alone, never on the number of servers, so every reduction over blocks
has the same terms on any cluster, and a snapshot loads on any number of servers. Slots follow the
blocks' cumulative size, so a contiguous range of slots is a fair share of the bytes.
"""

from __future__ import annotations

from functools import lru_cache

from shoal.vocabulary import SLOTS, Block, TableSpec


@lru_cache(maxsize=32)
def cut(spec: TableSpec) -> tuple[Block, ...]:
    """All blocks of the table in order; their position is their index."""
    pieces: list[tuple[int, int, int]] = []
    for tensor, item in enumerate(spec.tensors):
        step = spec.block_elements_max
        pieces += [(tensor, start, min(start + step, item.elements)) for start in range(0, item.elements, step)]
    total = sum(stop - start for _, start, stop in pieces)
    blocks: list[Block] = []
    before = 0
    for index, (tensor, start, stop) in enumerate(pieces):
        middle = before + (stop - start) / 2
        blocks.append(Block(index, tensor, start, stop, slot=min(SLOTS - 1, int(middle * SLOTS / total))))
        before += stop - start
    return tuple(blocks)


def shard_of_slot(slot: int, shards: int) -> int:
    """The shard that holds `slot` when slots are dealt in equal contiguous ranges."""
    return slot * shards // SLOTS


@lru_cache(maxsize=64)
def owned(spec: TableSpec, shard: int, shards: int) -> tuple[int, ...]:
    """Indices of the blocks that `shard` of `shards` holds, ascending."""
    return tuple(block.index for block in cut(spec) if shard_of_slot(block.slot, shards) == shard)


@lru_cache(maxsize=64)
def blocks_of_tensor(spec: TableSpec) -> tuple[tuple[int, ...], ...]:
    """For each tensor, the indices of its blocks."""
    found: list[list[int]] = [[] for _ in spec.tensors]
    for block in cut(spec):
        found[block.tensor].append(block.index)
    return tuple(tuple(item) for item in found)
