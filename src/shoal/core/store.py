"""The numbers of a shard: staged gradients in, one pass over each block, parameters out.

What it promises: the same commits give the same bits, whatever the number of servers or threads;
bytes that were handed out do not change while anyone still reads them; a staged block that was
delivered stays as it is until it is freed.

Two sides use it at once. The event loop stages, frees and publishes; tasks may run in a thread. The
loop owns the staging areas, the task owns the table; a task reads only contributions that are
complete, and the loop reads parameters only between tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, assert_never

import numpy as np
import numpy.typing as npt

from shoal.codec.codec import Codec, codec_for
from shoal.core import machine as k
from shoal.errors import ProtocolError
from shoal.kernel import Floats
from shoal.optim import phases
from shoal.optim.lamb import LAMB
from shoal.optim.registry import rule_for
from shoal.optim.rule import Rule
from shoal.placement import cut, owned
from shoal.tables.dense import Dense
from shoal.tables.layout import lay_out
from shoal.tables.pool import Pool
from shoal.vocabulary import Block, Contributor, TableSpec, Weighted

# Elements combined and updated at a time: the sum stays in the core's cache, so memory is passed over
# once. Partial sums are taken per chunk, so another value gives other last bits.
CHUNK_ELEMENTS = 1 << 16

Partials = tuple[tuple[int, tuple[float, ...]], ...]
Factors = tuple[tuple[str, tuple[float, ...]], ...]
R = TypeVar("R")


class Archive(Protocol):
    """Where snapshots go; storage.snapshot is one."""

    def write_shard(
        self,
        directory: Path | str,
        shard: int,
        shards: int,
        version: int,
        spec: TableSpec,
        entries: Mapping[tuple[str, int, str], npt.NDArray[Any]],
    ) -> str: ...

    def read_into(
        self, directory: Path | str, spec: TableSpec, entries: Mapping[tuple[str, int, str], npt.NDArray[Any]]
    ) -> int: ...


class Store:
    """The blocks of one shard. threads: how many work on a task's blocks at once."""

    def __init__(self, archive: Archive, threads: int = 1) -> None:
        self._archive = archive
        self._scratch = [np.zeros(CHUNK_ELEMENTS, np.float32) for _ in range(threads)]
        self._threads = ThreadPoolExecutor(threads, "shoal-store") if threads > 1 else None
        self._table: Table | None = None
        self._staging: dict[Contributor, Staging] = {}
        self._published: Published | None = None

    # --- tasks: called in any one thread at a time ------------------------------------------------

    def run(self, task: k.Task) -> Partials | str:
        """Perform a task; returns what Done.result wants: partials of a Measure, file name of a Save.

        ConfigurationError for a table this version cannot hold, ProtocolError for a seed that is not
        complete, SnapshotError from Save.
        """
        match task:
            case k.CreateTable(spec, shard, shards):
                self._table = Table.create(spec, shard, shards)
            case k.Seed(contributor=contributor):
                self._seed(contributor)
            case k.Measure(phase=phase):
                return self._measure(Update.of(self.table, task, self._staging), phase)
            case k.Apply():
                self._apply(Update.of(self.table, task, self._staging))
            case k.Save(seq, path):
                return self.save(path, self.table.shard, self.table.shards, seq)
            case _:
                assert_never(task)
        return ()

    def save(self, directory: Path | str, shard: int, shards: int, version: int) -> str:
        """Write the shard's blocks, states and step counts; returns the file's name (SnapshotError if it cannot)."""
        return self._archive.write_shard(directory, shard, shards, version, self.table.spec, self.table.entries())

    def load(self, directory: Path | str) -> int:
        """Take parameters, states and step counts from a snapshot written on any number of servers.

        The table must exist. Returns the snapshot's version (SnapshotError if it does not fit).
        """
        version = self._archive.read_into(directory, self.table.spec, self.table.entries())
        self.table.generation += 1
        return version

    def close(self) -> None:
        """Ends the store's threads."""
        if self._threads is not None:
            self._threads.shutdown()

    # --- bytes in and out: called by the event loop -----------------------------------------------

    def stage(self, contributor: Contributor, blocks: Sequence[int]) -> list[memoryview]:
        """Where a contribution's blocks go, in wire dtype: a writable (bytes,) uint8 view for each.

        A block that was delivered already gets spare memory: what is to be applied no longer changes.
        """
        table = self.table
        staging = self._staging.get(contributor)
        if staging is None:
            staging = self._staging[contributor] = Staging(table.arenas.take())
        return [
            memoryview(bytearray(table.bytes_of(block)))
            if block in staging.delivered
            else staging.memory[table.slices[table.position[block]]]
            for block in blocks
        ]

    def delivered(self, contributor: Contributor, blocks: Iterable[int]) -> None:
        """All bytes of these blocks are in place; only such blocks are ever applied."""
        self._staging[contributor].delivered.update(blocks)

    def free(self, contributors: Iterable[Contributor]) -> None:
        """These contributions are settled; their memory is reused once nobody refers to it."""
        for contributor in contributors:
            self._staging.pop(contributor, None)

    def contributors(self) -> tuple[Contributor, ...]:
        """Whose contributions hold memory here, complete or not."""
        return tuple(self._staging)

    def parameters(self, blocks: Sequence[int]) -> list[memoryview]:
        """The blocks at the current version in their wire dtype: a read-only (bytes,) uint8 view for each.

        They are encoded once per version, however many workers ask, and stay as they are while
        anyone refers to them. Not while a task runs.
        """
        table = self.table
        if self._published is None or self._published.generation != table.generation:
            self._published = None  # returns the arena, unless someone still sends from it
            self._published = Published(table.generation, table.arenas.take())
        published = self._published
        for block in blocks:
            if block not in published.blocks:
                position = table.position[block]
                table.codecs[position].encode(
                    table.encoded(published.memory, position), table.dense.parameters[position]
                )
                published.blocks.add(block)
        return [published.memory[table.slices[table.position[block]]].toreadonly() for block in blocks]

    @property
    def table(self) -> Table:
        assert self._table is not None, "the shard runs CreateTable before anything else"
        return self._table

    # --- the passes over the blocks ---------------------------------------------------------------

    def _seed(self, contributor: Contributor) -> None:
        table = self.table
        staging = self._staging.get(contributor)
        missing = set(table.position) - (staging.delivered if staging else set())
        if missing:
            raise ProtocolError(f"the seed of worker {contributor.worker} lacks {len(missing)} blocks of this shard")
        if staging is not None:
            for position, parameters in enumerate(table.dense.parameters):
                encoded = table.encoded(staging.memory, position)
                table.codecs[position].first(parameters, encoded, np.float32(1))
        table.generation += 1

    def _measure(self, update: Update, phase: str) -> Partials:
        measure = {phases.GRADIENT: _gradient_partial, phases.TRUST: _trust_partial}[phase]
        found = self._each_block(lambda position, scratch: measure(update, position, scratch))
        return tuple((index, values) for index, values in zip(self.table.position, found, strict=True) if values)

    def _apply(self, update: Update) -> None:
        self._each_block(lambda position, scratch: _apply_block(update, position, scratch))
        self.table.generation += 1

    def _each_block(self, work: Callable[[int, Floats], R]) -> list[R]:
        """work(position, scratch) for each block, by as many threads as there are; results in order."""
        queue = deque(range(len(self.table.blocks)))
        results: dict[int, R] = {}

        def drain(scratch: Floats) -> None:
            while True:
                try:
                    position = queue.popleft()
                except IndexError:
                    return
                results[position] = work(position, scratch)

        deque(self._threads.map(drain, self._scratch) if self._threads else map(drain, self._scratch), maxlen=0)
        return [results[position] for position in range(len(results))]


@dataclass
class Staging:
    """What one contributor has sent so far. memory: the shard's blocks, laid out by Table.slices."""

    memory: memoryview
    delivered: set[int] = field(default_factory=set)


@dataclass
class Published:
    """The parameters of one generation, encoded so far for these blocks."""

    generation: int
    memory: memoryview
    blocks: set[int] = field(default_factory=set)


@dataclass
class Table:
    """A shard's part of a table: its blocks by position, their numbers, and how they travel.

    generation grows with every change of the parameters.
    """

    spec: TableSpec
    shard: int
    shards: int
    blocks: tuple[Block, ...]
    position: dict[int, int]  # of a block's index, ascending
    rules: tuple[Rule, ...]  # by parameter group
    codecs: tuple[Codec, ...]  # by position
    slices: tuple[slice, ...]  # by position: where a block's bytes lie in an arena
    arenas: Pool
    dense: Dense
    generation: int = 0

    @classmethod
    def create(cls, spec: TableSpec, shard: int, shards: int) -> Table:
        blocks = tuple(cut(spec)[index] for index in owned(spec, shard, shards))
        rules = tuple(rule_for(spec.rule, settings) for settings in spec.groups)
        codecs = tuple(codec_for(spec.tensors[block.tensor].dtype) for block in blocks)
        slices, arena_bytes = lay_out(codec.bytes_of(b.elements) for codec, b in zip(codecs, blocks, strict=True))
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
            arenas=Pool(arena_bytes),
            dense=Dense([block.elements for block in blocks], states),
        )
        table.warm()
        return table

    def warm(self) -> None:
        """Compile every kernel this table will use (or load it from disk) before the first step."""
        one = np.zeros(1, np.float32)
        phases.sum_of_squares(one)
        for codec in set(self.codecs):
            codec.warm()
        for rule in self.rules:
            states = [one.copy() for _ in rule.states]
            if isinstance(rule, LAMB):
                rule.trust(one, one, states, rule.constants(1, 0.0))
            rule.update(one.copy(), one, states, rule.constants(1, 0.0))

    def group(self, position: int) -> int:
        return self.spec.tensors[self.blocks[position].tensor].group

    def bytes_of(self, block: int) -> int:
        piece = self.slices[self.position[block]]
        return int(piece.stop - piece.start)

    def encoded(self, memory: memoryview, position: int) -> npt.NDArray[Any]:
        """A block's elements in an arena, as its codec's kernels take them. No copy."""
        return np.frombuffer(memory[self.slices[position]], self.codecs[position].item)

    def entries(self) -> dict[tuple[str, int, str], npt.NDArray[Any]]:
        """Everything a snapshot keeps, by (tensor, first element, what): views, to read or to fill."""
        entries: dict[tuple[str, int, str], npt.NDArray[Any]] = {}
        for position, block in enumerate(self.blocks):
            name = self.spec.tensors[block.tensor].name
            entries[name, block.start, "parameters"] = self.dense.parameters[position]
            entries[name, block.start, "step"] = self.dense.steps[position : position + 1]
            states = self.rules[self.group(position)].states
            for what, state in zip(states, self.dense.states[position], strict=True):
                entries[name, block.start, what] = state
        return entries


@dataclass(frozen=True)
class Update:
    """One commit's combined gradient over the blocks of a table, never in memory as a whole."""

    table: Table
    rates: tuple[float, ...]  # by parameter group
    ratios: tuple[float, ...]  # by tensor; empty without the trust phase
    factor: np.float32  # clips the combined gradient; 1 without the gradient phase
    contributions: tuple[tuple[Staging, np.float32], ...]  # in the order in which they combine

    @classmethod
    def of(cls, table: Table, task: k.Measure | k.Apply, staging: Mapping[Contributor, Staging]) -> Update:
        factors = dict(task.factors)
        (factor,) = factors.get(phases.GRADIENT, (1.0,))
        found = tuple(_weighed(task.contributors, staging))
        return cls(table, task.rates, factors.get(phases.TRUST, ()), np.float32(factor), found)

    def touches(self, position: int) -> bool:
        """Whether any contributor delivered the block; without, it has no gradient and keeps its state."""
        index = self.table.blocks[position].index
        return any(index in staging.delivered for staging, _ in self.contributions)

    def chunks(self, position: int, scratch: Floats) -> Iterator[tuple[slice, Floats]]:
        """The block's combined gradient, chunk by chunk: where it belongs, and its elements.

        Contributors without the block count as zero. The elements lie in scratch until the next chunk.
        """
        block, codec = self.table.blocks[position], self.table.codecs[position]
        sources = [
            (self.table.encoded(staging.memory, position), weight)
            for staging, weight in self.contributions
            if block.index in staging.delivered
        ]
        for start in range(0, block.elements, CHUNK_ELEMENTS):
            piece = slice(start, min(start + CHUNK_ELEMENTS, block.elements))
            gradient = scratch[: piece.stop - start]
            combine = codec.first
            for encoded, weight in sources:
                combine(gradient, encoded[piece], weight)
                combine = codec.add
            if self.factor != 1:
                np.multiply(gradient, self.factor, out=gradient)
            yield piece, gradient

    def constants(self, position: int) -> Floats:
        """The rule's constants for the block's next step."""
        tensor, group = self.table.blocks[position].tensor, self.table.group(position)
        rate = self.rates[group] * (self.ratios[tensor] if self.ratios else 1.0)
        return self.table.rules[group].constants(int(self.table.dense.steps[position]) + 1, rate)


def _weighed(
    contributors: Iterable[Weighted], staging: Mapping[Contributor, Staging]
) -> Iterator[tuple[Staging, np.float32]]:
    """Those contributors that have staged anything here; one whose blocks are all elsewhere has not."""
    for item in contributors:
        found = staging.get(item.contributor)
        if found is not None:
            yield found, np.float32(item.weight)


def _apply_block(update: Update, position: int, scratch: Floats) -> None:
    if not update.touches(position):
        return
    dense, rule = update.table.dense, update.table.rules[update.table.group(position)]
    parameters, states, constants = dense.parameters[position], dense.states[position], update.constants(position)
    for piece, gradient in update.chunks(position, scratch):
        rule.update(parameters[piece], gradient, [state[piece] for state in states], constants)
    dense.steps[position] += 1


def _gradient_partial(update: Update, position: int, scratch: Floats) -> tuple[float, ...]:
    """(sum of g**2,), or nothing for a block without a gradient."""
    if not update.touches(position):
        return ()
    return (float(sum(phases.sum_of_squares(gradient) for _, gradient in update.chunks(position, scratch))),)


def _trust_partial(update: Update, position: int, scratch: Floats) -> tuple[float, ...]:
    """(tensor, sum of p**2, sum of u**2), or nothing for a block without a gradient."""
    rule = update.table.rules[update.table.group(position)]
    if not update.touches(position) or not isinstance(rule, LAMB):
        return ()
    dense, constants = update.table.dense, update.constants(position)
    weights = updates = 0.0
    for piece, gradient in update.chunks(position, scratch):
        states = [state[piece] for state in dense.states[position]]
        weight, squares = rule.trust(dense.parameters[position][piece], gradient, states, constants)
        weights += weight
        updates += squares
    return (float(update.table.blocks[position].tensor), weights, updates)
