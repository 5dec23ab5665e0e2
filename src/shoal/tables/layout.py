"""Where blocks lie in one piece of memory: one after the other, each on a cache line of its own."""

from __future__ import annotations

from collections.abc import Iterable

ALIGNMENT_BYTES = 64


def lay_out(lengths_bytes: Iterable[int]) -> tuple[tuple[slice, ...], int]:
    """A slice (in bytes) for each length, and the size of the whole in bytes."""
    slices: list[slice] = []
    position = 0
    for length in lengths_bytes:
        slices.append(slice(position, position + length))
        position += -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(slices), position
