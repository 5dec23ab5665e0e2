"""A worker's side of the memory that it shares with the servers on its host.

Its gradients lie in an arena of its own, where servers read them; the servers' parameters are mapped
side by side into one region, where the worker reads them. Both have layouts that all compute (core/shared.py).
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from shoal.arena import PAGE_BYTES, Arena, Range, Region
from shoal.core.shared import Shared

Bytes = npt.NDArray[np.uint8]


class SharedMemory:
    """The arena and the region. Servers are attached one by one, as they answer.

    A server that takes another's place is attached at once, but its parameters are looked at only when they are
    fresh: what the worker computes on does not move.
    """

    def __init__(self, layout: Shared) -> None:
        self._layout = layout
        self.arena = Arena("shoal-gradients", layout.pushed_bytes)
        self.arena.touch(Range(0, self.arena.size_bytes))
        self.region = Region(layout.size_bytes)
        packed = layout.pushed != layout.blocks  # then an encoder writes them
        tensors = () if packed else layout.tensors
        self._gradients = [np.frombuffer(self.arena.memory[piece], np.uint8) for piece in tensors]
        self._stamps: dict[int, npt.NDArray[np.int64]] = {}  # by shard: (1,)
        self._servers: dict[int, int] = {}  # by shard: whose memory is, or will be, looked at
        self._next: dict[int, int] = {}  # by shard: the descriptor of that memory, until it is

    def attach(self, shard: int, server: int, descriptor: int) -> None:
        """Have this server's memory as the shard's (ProtocolError if it is no arena). Takes over the descriptor."""
        if shard < 0 or self._servers.get(shard) == server:
            os.close(descriptor)
            return  # it answered twice, or too late
        if shard in self._next:
            os.close(self._next.pop(shard))
        self._servers[shard], self._next[shard] = server, descriptor
        if shard not in self._stamps:
            self.look_at(shard)

    def look_at(self, shard: int) -> None:
        """Map the parameters of the server that was attached last, if they are not yet. Only while nobody computes."""
        descriptor = self._next.pop(shard, None)
        if descriptor is None:
            return
        page = Range(shard * PAGE_BYTES, (shard + 1) * PAGE_BYTES)
        again = os.dup(descriptor)
        try:
            self.region.place(descriptor, self._layout.parts[shard])
        except BaseException:
            os.close(again)
            raise
        self.region.place(again, page)
        self._stamps[shard] = self._stamp_of(shard)

    def part(self) -> None:
        """Who computes in the servers' memory keeps it as it is now, at the same place, and what servers change from
        here on is looked at in another. Only while nobody computes."""
        region, self.region = self.region, self.region.again()
        region.detach()
        self._stamps = {shard: self._stamp_of(shard) for shard in self._stamps}

    def attached(self, server: int) -> bool:
        """Whether this server's blocks are read and written here."""
        return server in self._servers.values()

    def stamp(self, shard: int) -> int:
        """Odd while the shard's parameters change; grows with every change."""
        return int(self._stamps[shard][0])

    def _stamp_of(self, shard: int) -> npt.NDArray[np.int64]:
        return np.frombuffer(self.region.memory, np.int64, 1, shard * PAGE_BYTES)

    def gradient(self, tensor: int) -> Bytes:
        """Where this tensor's gradient is to lie: (bytes,), writable."""
        return self._gradients[tensor]

    def parameter(self, tensor: int) -> Bytes:
        """This tensor as the servers hold it: (bytes,); what is written here is seen by nobody else."""
        return np.frombuffer(self.region.memory[self._layout.tensors[tensor]], np.uint8)

    def take_in(self, tensor: int, gradient: Bytes) -> Bytes:
        """The gradient where servers read it: copied there, unless it lies there already."""
        place = self._gradients[tensor]
        if gradient is not place and not same_memory(place, gradient):
            np.copyto(place, gradient)
        return place

    def parameter_block(self, block: int) -> memoryview:
        return self.region.memory[self._layout.blocks[block]]

    def close(self) -> None:
        """Parameters that a model still uses stay as they are now, whatever the servers do; and gradients that servers
        may still read, whatever the process does that pushed them."""
        for descriptor in self._next.values():
            os.close(descriptor)
        self._next.clear()
        self.region.detach()
        self.arena.seclude()


def same_memory(one: Bytes, other: Bytes) -> bool:
    """Whether two arrays are the same bytes in memory."""
    return one.nbytes == other.nbytes and one.__array_interface__["data"] == other.__array_interface__["data"]
