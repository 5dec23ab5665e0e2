"""A shard's part of a table: which blocks, their rules and wire formats, and the memory they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.arena import PAGE_BYTES, Arena
from shoal.codec.codec import Codec, codec_for, mixed, packs, push_codec
from shoal.codec.packed import Packed
from shoal.core.shared import Shared
from shoal.kernel import Encoded, Floats
from shoal.optim import phases
from shoal.optim.passes import fused
from shoal.optim.registry import rule_for
from shoal.optim.rule import Rule
from shoal.placement import cut, owned
from shoal.tables.dense import Dense
from shoal.tables.layout import lay_out
from shoal.tables.pool import Pool
from shoal.vocabulary import Block, TableSpec

RUN_ELEMENTS = 1 << 20  # what one thread takes at a time

PUBLISHED = "published"  # in a snapshot: what workers held, where that is not the parameters

Blocks = list[Encoded]  # by position
Key = tuple[str, int, str]  # tensor, first element, what


@dataclass(frozen=True)
class Run:
    """Neighbouring float32 blocks of one group, and the gaps between them, as one array: small tensors cost as little
    as large ones. What lies in the gaps is nobody's. start, stop: float32 elements of an arena."""

    position: int  # of its first block
    start: int
    stop: int
    parameters: Floats
    states: tuple[Floats, ...]


@dataclass
class Table:
    """A shard's part of a table: its blocks by position, their numbers, and how they travel.

    codecs, slices: of parameters, and of the seed; pushes, pushed: of gradients.
    generation grows with every change of the parameters. Where memory is shared, arena holds every
    block in wire dtype: the masters themselves where they are float32, elsewhere what is published of them.
    """

    spec: TableSpec
    shard: int
    shards: int
    blocks: tuple[Block, ...]
    position: dict[int, int]  # of a block's index, ascending
    rules: tuple[Rule, ...]  # by parameter group
    codecs: tuple[Codec, ...]  # by position
    slices: tuple[slice, ...]  # by position: where a block's bytes lie in an arena
    pushes: tuple[Codec | Packed, ...]
    pushed: tuple[slice, ...]
    packs: bool  # some gradients travel otherwise than their parameters do
    arenas: Pool
    dense: Dense
    shared: Shared | None = None
    arena: Arena | None = None
    stamp: npt.NDArray[np.int64] | None = None  # (1,)
    published: tuple[Encoded | None, ...] = ()  # by position: what to encode the block into, unless it is float32
    runs: tuple[Run, ...] = ()  # all blocks, where memory is shared and all of them are float32
    elements: int = 0  # of all blocks
    generation: int = 0
    absent: set[int] = field(default_factory=set)  # positions of blocks that another server has yet to give

    @classmethod
    def create(cls, spec: TableSpec, shard: int, shards: int, shared: Shared | None = None) -> Table:
        """shared: how parameters and gradients lie in memory that is shared; None: none is."""
        blocks = tuple(cut(spec)[index] for index in owned(spec, shard, shards))
        rules = tuple(rule_for(spec.rule, settings) for settings in spec.groups)
        codecs = tuple(codec_for(spec.tensors[block.tensor].dtype) for block in blocks)
        slices, arena_bytes = lay_out(codec.bytes_of(b.elements) for codec, b in zip(codecs, blocks, strict=True))
        pushes = tuple(push_codec(spec.tensors[block.tensor]) for block in blocks)
        pushed, pushed_bytes = lay_out(codec.bytes_of(b.elements) for codec, b in zip(pushes, blocks, strict=True))
        arena, given = None, {}
        if shared is not None:
            # The same layout everywhere, so that a block is found alike in anyone's memory.
            slices, arena_bytes = tuple(shared.blocks[block.index] for block in blocks), shared.size_bytes
            pushed, pushed_bytes = tuple(shared.pushed[block.index] for block in blocks), shared.pushed_bytes
            arena = Arena(f"shoal-server-{shard}", arena_bytes)
            arena.touch(shared.parts[shard])
            given = {
                position: np.frombuffer(arena.memory[slices[position]], np.float32)
                for position, codec in enumerate(codecs)
                if codec.item is np.float32
            }
        published: tuple[Encoded | None, ...] = tuple(
            None if arena is None or position in given else np.frombuffer(arena.memory[piece], codec.item)
            for position, (piece, codec) in enumerate(zip(slices, codecs, strict=True))
        )
        places = None
        if shared is not None and len(given) == len(blocks):  # states lie as the parameters do: see Run
            first = shared.parts[shard].start
            places = [slice(piece.start - first, piece.stop - first) for piece in slices]
        pulled = {position for position, block in enumerate(blocks) if spec.tensors[block.tensor].pull}
        states = [len(rules[spec.tensors[block.tensor].group].states) for block in blocks]
        table = cls(
            spec=spec,
            shard=shard,
            shards=shards,
            blocks=blocks,
            position={block.index: position for position, block in enumerate(blocks)},
            rules=rules,
            codecs=codecs,
            slices=slices,
            pushes=pushes,
            pushed=pushed,
            packs=packs(spec),
            arenas=Pool(max(arena_bytes, pushed_bytes)),
            dense=Dense([block.elements for block in blocks], states, given, places, pulled),
            shared=shared,
            arena=arena,
            stamp=None if arena is None else np.frombuffer(arena.memory, np.int64, 1, shard * PAGE_BYTES),
            published=published,
            elements=sum(block.elements for block in blocks),
        )
        if table.stamp is not None:
            table.stamp[0] = 2  # 0 is said of parameters that do not lie there
        if places is not None and not table.packs:
            table.runs = tuple(table.run_together(shared.parts[shard].start if shared else 0))
        table.warm()
        return table

    def run_together(self, first: int) -> Iterator[Run]:
        """Runs of at most RUN_ELEMENTS. first: the byte of the arena at which the shard's part begins."""
        assert self.arena is not None
        floats = np.frombuffer(self.arena.memory, np.float32)
        ends: list[tuple[int, int, int]] = []  # of each group's neighbours: position, first and last element
        for position, piece in enumerate(self.slices):
            start, stop = piece.start // 4, piece.stop // 4
            if ends and self.group(ends[-1][0]) == self.group(position):
                ends[-1] = (ends[-1][0], ends[-1][1], stop)
            else:
                ends.append((position, start, stop))
        for position, begin, end in ends:
            count = len(self.rules[self.group(position)].states)
            for start in range(begin, end, RUN_ELEMENTS):
                stop = min(start + RUN_ELEMENTS, end)
                states = tuple(layer[start - first // 4 : stop - first // 4] for layer in self.dense.layers[:count])
                yield Run(position, start, stop, floats[start:stop], states)

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Inside, the parameters change: the stamp says so to all who read them where they lie."""
        if self.stamp is not None:
            self.stamp += 1
        try:
            yield
        finally:
            if self.stamp is not None:
                self.stamp += 1

    def warm(self) -> None:
        """Compile every kernel this table will use (or load it from disk) before the first step."""
        for known in {*self.codecs, *self.pushes}:
            known.warm()
        pairs = enumerate(zip(self.pushes, self.codecs, strict=True))
        for group, push, codec in {(self.group(position), *pair) for position, pair in pairs}:
            rule = self.rules[group]
            measured = phases.GRADIENT in phases.phases(self.spec)
            halves = codec.item is not np.float32 and self.arena is not None
            fused(rule, mixed(push, codec)).warm(rule.constants(1, 0.0), squares=measured, published=halves)

    def publish(self) -> None:
        """Encode the parameters into the arena, where they were changed without a pass that did."""
        for target, codec, parameters in zip(self.published, self.codecs, self.dense.parameters, strict=True):
            if target is not None:
                codec.encode(target, parameters)

    def group(self, position: int) -> int:
        return self.spec.tensors[self.blocks[position].tensor].group

    def places(self, seed: bool) -> tuple[slice, ...]:
        """By position, where a block of a contribution lies; seed: of initial parameters, which lose nothing."""
        return self.slices if seed else self.pushed

    def encoded(self, memory: memoryview, seed: bool = False) -> Blocks:
        """All blocks of a contribution, by position, as their codecs' kernels take them. No copy."""
        codecs = self.codecs if seed else self.pushes
        pairs = zip(self.places(seed), codecs, strict=True)
        return [np.frombuffer(memory[piece], codec.item) for piece, codec in pairs]

    def of_block(self, index: int) -> list[npt.NDArray[Any]]:
        """A block's parameters, its states, its published copy and its step count: views."""
        position, dense = self.position[index], self.dense
        copy = dense.published[position]
        copies = [] if copy is None else [copy]
        return [dense.parameters[position], *dense.states[position], *copies, dense.steps[position : position + 1]]

    def served(self, position: int) -> Floats:
        """What workers hold of a block's parameters."""
        copy = self.dense.published[position]
        return self.dense.parameters[position] if copy is None else copy

    def entries(self) -> dict[Key, npt.NDArray[Any]]:
        """Everything a snapshot keeps, by (tensor, first element, what): views, to read or to fill."""
        entries: dict[Key, npt.NDArray[Any]] = {}
        for position, block in enumerate(self.blocks):
            name = self.spec.tensors[block.tensor].name
            entries[name, block.start, "parameters"] = self.dense.parameters[position]
            entries[name, block.start, "step"] = self.dense.steps[position : position + 1]
            states = self.rules[self.group(position)].states
            for what, state in zip(states, self.dense.states[position], strict=True):
                entries[name, block.start, what] = state
            copy = self.dense.published[position]
            if copy is not None:
                entries[name, block.start, PUBLISHED] = copy
        return entries
