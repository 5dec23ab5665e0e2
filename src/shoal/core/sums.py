"""Sums of updates, where every replica of a shard holds them before they are committed.

The primary combines into memory of its own; backups on its host read it there, others are sent it. Where
all contributions are held in place instead, pages of that memory are never touched, and cost nothing. A sum
is float32 whatever the wire format is, so applying it gives the bits that combining in passing would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from shoal.arena import Arena, reader
from shoal.codec.codec import FLOAT32, mixed
from shoal.core.shared import lay_out_shared
from shoal.core.table import Blocks, Table
from shoal.kernel import Floats
from shoal.optim import phases
from shoal.optim.passes import fused
from shoal.tables.layout import lay_out
from shoal.vocabulary import TableSpec


@dataclass
class Sum:
    """What the next commit applies: blocks by position, of which only those delivered (by index) have a gradient."""

    memory: memoryview
    blocks: Blocks
    delivered: set[int]


class Sums:
    """own: (elements,) float32 by position, where this server combines, or is sent sums. held: the one to apply."""

    def __init__(self, table: Table, shared: bool) -> None:
        self._table = table
        layout = lay_out_shared(_in_float32(table.spec), table.shards) if shared else None
        self._arena: Arena | None = None
        if layout is not None:
            self._arena = Arena(f"shoal-sums-{table.shard}", layout.size_bytes)
            self._slices: Sequence[slice] = [layout.blocks[block.index] for block in table.blocks]
            self._size_bytes, memory = layout.size_bytes, self._arena.memory
        else:
            self._slices, self._size_bytes = lay_out(4 * block.elements for block in table.blocks)
            memory = memoryview(bytearray(self._size_bytes))
        self._memory = memory
        self.own = self._arrays(memory)
        self.held = Sum(memory, [], set())
        self._lent: dict[int, tuple[memoryview, list[Floats]]] = {}  # by server
        self._warm()

    @property
    def descriptor(self) -> int | None:
        """Of the memory that backups on this host may read; None: it cannot be shared."""
        return None if self._arena is None else self._arena.descriptor

    def hold_own(self, positions: Iterable[int]) -> None:
        """The sum lies in this server's own memory; only these blocks have a gradient."""
        delivered = {self._table.blocks[position].index for position in positions}
        self.held = Sum(self._memory, list(self.own), delivered)

    def hold(self, server: int, blocks: Iterable[int]) -> None:
        """The sum came from this server: it lies in its memory, if that is lent, or was sent."""
        memory, arrays = self._lent.get(server, (self._memory, self.own))
        self.held = Sum(memory, list(arrays), set(blocks))

    def places(self, blocks: Iterable[int]) -> list[memoryview]:
        """Where blocks of a sum that is sent land: a writable (bytes,) uint8 view for each."""
        return [self._memory[self._slices[self._table.position[block]]] for block in blocks]

    def parts(self, blocks: Iterable[int]) -> list[memoryview]:
        """Blocks of the sum that is held, to be sent: a (bytes,) uint8 view for each."""
        return [self.held.blocks[self._table.position[block]].view(np.uint8).data for block in blocks]

    def lend(self, server: int, descriptor: int) -> None:
        """Map the memory in which this server combines (ProtocolError if it is no arena). Takes over the descriptor."""
        memory = reader(descriptor, self._size_bytes)
        self._lent[server] = memory, self._arrays(memory)

    def forget(self, others: Iterable[int]) -> None:
        """Let go of the memory that servers besides these have lent, once the sum that is held is another."""
        kept = set(others)
        self._lent = {server: lent for server, lent in self._lent.items() if server in kept}

    def lent(self, server: int) -> bool:
        """Whether this server's sums are read where they lie."""
        return server in self._lent

    def _arrays(self, memory: memoryview) -> list[Floats]:
        return [np.frombuffer(memory[piece], np.float32) for piece in self._slices]

    def _warm(self) -> None:
        """Compile what applies sums, so that no step waits for it."""
        table = self._table
        FLOAT32.warm()
        for group, codec in {(table.group(position), codec) for position, codec in enumerate(table.codecs)}:
            rule, halves = table.rules[group], codec is not FLOAT32 and table.arena is not None
            measured = phases.GRADIENT in phases.phases(table.spec)
            fused(rule, mixed(FLOAT32, codec)).warm(rule.constants(1, 0.0), squares=measured, published=halves)


def _in_float32(spec: TableSpec) -> TableSpec:
    """The same table, all in float32: how its sums lie in memory."""
    tensors = tuple(msgspec.structs.replace(tensor, dtype="float32") for tensor in spec.tensors)
    return msgspec.structs.replace(spec, tensors=tensors)
