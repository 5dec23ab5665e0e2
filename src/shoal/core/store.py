"""The numbers of a shard: staged gradients in, one pass over each block, parameters out.

What it promises: the same commits give the same bits, whatever the number of servers or threads;
bytes that were handed out do not change while anyone who counts still reads them (see `parameters`); a
staged block that was delivered stays as it is until it is freed.

Where workers on this host share memory with it, their staged blocks are read where they lie, and the
parameters lie in an arena that they map: nothing is copied, either way. Its stamp is odd while a task
changes the parameters.

Two sides use it at once. The event loop stages, frees and publishes; tasks may run in a thread. The
loop owns the staging areas, the task owns the table; a task reads only contributions that are
complete, and the loop reads parameters only between tasks.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, assert_never

import numpy as np
import numpy.typing as npt

from shoal.arena import reader
from shoal.codec.codec import FLOAT32
from shoal.core import machine as k
from shoal.core import merging
from shoal.core.combined import Combined
from shoal.core.compensation import Compensator
from shoal.core.increments import Increments
from shoal.core.shared import lay_out_shared
from shoal.core.sums import Sums
from shoal.core.table import Blocks, Key, Table
from shoal.core.update import MEASURES, Staged, Update, apply_block, apply_run, of_block, weighted
from shoal.errors import ProtocolError
from shoal.kernel import Floats, read_only
from shoal.vocabulary import TOKENS, Contributor, TableSpec, Weighted
from shoal.wire import messages as m
from shoal.wire.gradient import WHOLE

# Elements of three or more contributions that are combined at a time: their sum stays in the core's
# cache, so memory is passed over once. Another value gives the same bits.
CHUNK_ELEMENTS = 1 << 16

ALIGNED_BYTES = 64
CHECKED_SHARE = 16  # of a shard's blocks, one in so many is looked at in each version
CHECKED_ELEMENTS = 1 << 16  # of each

Entries = Mapping[Key, npt.NDArray[Any]]
Partials = tuple[tuple[int, tuple[float, ...]], ...]
Factors = tuple[tuple[str, tuple[float, ...]], ...]
R = TypeVar("R")
T = TypeVar("T")


class Archive(Protocol):
    """Where snapshots go; storage.snapshot is one."""

    def write_shard(
        self,
        directory: Path | str,
        shard: int,
        shards: int,
        version: int,
        spec: TableSpec,
        entries: Entries,
    ) -> str: ...

    def read_into(self, directory: Path | str, spec: TableSpec, entries: Entries) -> int: ...


class Store:
    """The blocks of one shard. threads: how many work on a task's blocks at once. shared: with workers on this host."""

    def __init__(self, archive: Archive, threads: int = 1, shared: bool = False) -> None:
        self._archive = archive
        self._shared = shared
        self._lent: dict[tuple[int, int], Lent] = {}  # (worker, incarnation) -> its arena
        self._scratch = [np.zeros(CHUNK_ELEMENTS, np.float32) for _ in range(threads)]
        self._helpers = ThreadPoolExecutor(threads - 1, "shoal-store") if threads > 1 else None
        self._table: Table | None = None
        self._staging: dict[Contributor, Staging] = {}
        self._published: Published | None = None
        self._combined: Combined | None = None
        self._increments: Increments | None = None
        self._sums: Sums | None = None  # of a shard that has replicas
        self._compensator: Compensator | None = None
        self._fills: dict[m.Fill, bytearray] = {}  # came, and are not loaded
        self._kept: dict[Key, npt.NDArray[Any]] = {}  # the last snapshot's, once there was one
        self._hurried = False

    # --- tasks: called in any one thread at a time ------------------------------------------------

    def run(self, task: k.Task, updated: Callable[[int], None] = lambda _: None) -> Partials:
        """Perform a task; returns what Done.result wants: partials of a Measure.

        updated: told of each block that an Apply is done with, on the thread that did it.
        ConfigurationError for a table this version cannot hold, ProtocolError for a seed that is not
        complete, MemoryError where there is no room to keep a copy.
        """
        match task:
            case k.CreateTable(spec, shard, shards, replicated, absent):
                self._table = Table.create(spec, shard, shards, lay_out_shared(spec, shards) if self._shared else None)
                self._increments = Increments(self._table)
                self._compensator, self._combined = Compensator(self._table), None
                Combined.warm(self._table)
                if spec.radial:
                    merging.warm()
                self._sums = Sums(self._table, self._shared) if replicated else None
                if absent:
                    self._table.absent.update(range(len(self._table.blocks)))
            case k.Seed(contributor=contributor, summed=summed):
                with self.table.moving():
                    self._seed(self.sums.held if summed else self._staging.get(contributor), contributor, summed)
                self.increments.publish()
                self.increments.reset(task.seq)
            case k.Combine(contributors, held, compensation):
                self._combine(contributors, held, compensation)
            case k.Measure(phase=phase):
                return self._measure(self._update(task), phase)
            case k.Apply():
                update = self._update(task)
                self.compensator.keep(task.compensation, self._each)
                with self.table.moving():
                    self._apply(update, task.seq, updated, task.compensation is None or task.summed)
            case k.Copy():
                self._copy()
            case _:
                assert_never(task)
        return ()

    def write(self, version: int, directory: Path | str) -> str:
        """Write the blocks, states and step counts that the last Copy kept; returns a receipt (SnapshotError if it
        cannot). In a thread of its own: tasks may run meanwhile."""
        table = self.table
        return self._archive.write_shard(directory, table.shard, table.shards, version, table.spec, self._kept)

    def load(self, directory: Path | str) -> int:
        """Take parameters, states and step counts from a snapshot written on any number of servers.

        The table must exist. Returns the snapshot's version (SnapshotError if it does not fit).
        """
        version = self._archive.read_into(directory, self.table.spec, self.table.entries())
        self.table.publish()
        self.increments.reset(version)
        self.table.generation += 1
        return version

    def checksum(self, version: int) -> int:
        """Of some blocks at this version, others at the next: all that is kept of them; 0 while some are absent."""
        table = self.table
        if table.absent:
            return 0
        step = min(CHECKED_SHARE, len(table.blocks)) or 1
        found = 1
        for position in range(version % step, len(table.blocks), step):
            for array in table.of_block(table.blocks[position].index):
                found = zlib.crc32(array[:CHECKED_ELEMENTS].view(np.uint8).data, found)
        return found or 1

    def hurry(self, hurried: bool = True) -> None:
        """Let the Combine that runs end after the block it works on. False: one is about to begin."""
        self._hurried = hurried

    def close(self) -> None:
        """Ends the store's threads."""
        if self._helpers is not None:
            self._helpers.shutdown()

    # --- bytes in and out: called by the event loop -----------------------------------------------

    def stage(self, contributor: Contributor, blocks: Sequence[int]) -> list[memoryview]:
        """Where a contribution's blocks go, in wire dtype: a writable (bytes,) uint8 view for each.

        A block that was delivered already gets spare memory: what is to be applied no longer changes.
        """
        table = self.table
        staging = self._staging.get(contributor)
        if staging is None:
            memory = table.arenas.take()
            staging = self._staging[contributor] = Staging(memory, table.encoded(memory, contributor.seeds))
        staging.awaited.update(blocks)
        places = table.places(contributor.seeds)
        wanted = [(block, staging.memory[places[table.position[block]]]) for block in blocks]
        return [memoryview(bytearray(len(place))) if block in staging.delivered else place for block, place in wanted]

    def delivered(self, contributor: Contributor, blocks: Iterable[int]) -> None:
        """All bytes of these blocks are in place; only such blocks are ever applied.

        ProtocolError for blocks that stage() lent no memory for: they were named without their bytes.
        """
        staging = self._staging.get(contributor)
        unsent = set(blocks) - (staging.awaited if staging is not None else set())
        if staging is None or unsent:
            raise ProtocolError(f"worker {contributor.worker} named blocks {sorted(unsent)[:4]} without their bytes")
        staging.delivered.update(blocks)

    def free(self, contributors: Iterable[Contributor]) -> None:
        """These contributions are settled; their memory is reused once nobody refers to it."""
        for contributor in contributors:
            self._staging.pop(contributor, None)

    def contributors(self) -> tuple[Contributor, ...]:
        """Whose contributions hold memory here, complete or not."""
        return tuple(self._staging)

    def changes(
        self, blocks: Sequence[int], base: int, still: bool = False
    ) -> tuple[tuple[int, ...], list[memoryview]]:
        """What Parameters.increments is to say of these blocks for who holds version `base`, and the payload: views as
        of parameters(). Not while a task runs."""
        since = [self.increments.since(block, base) for block in blocks]
        wholes = [block for block, (count, _) in zip(blocks, since, strict=True) if count == WHOLE]
        left = iter(self.parameters(wholes, still))
        parts = [[next(left)] if count == WHOLE else found for count, found in since]
        return tuple(count for count, _ in since), [part for found in parts for part in found]

    def parameters(self, blocks: Sequence[int], still: bool = False) -> list[memoryview]:
        """The blocks at the current version in their wire dtype: a read-only (bytes,) uint8 view for each.

        They are encoded once per version, however many workers ask, and stay as they are while
        anyone refers to them. still: nothing changes them before every worker has them (Policy.still), so
        float32 masters are sent from where they lie: what is sent twice, or to a worker that is fenced meanwhile,
        may change on its way, and is dropped there. While a task runs, only of blocks that it is done with.
        """
        table = self.table
        if still and all(table.codecs[table.position[block]].item is np.float32 for block in blocks):
            masters = (table.served(table.position[block]) for block in blocks)
            return [master.view(np.uint8).data.toreadonly() for master in masters]
        if self._published is None or self._published.generation != table.generation:
            self._published = None  # returns the arena, unless someone still sends from it
            self._published = Published(table.generation, table.arenas.take())
        published = self._published
        for block in blocks:
            if block not in published.blocks:
                position = table.position[block]
                target = np.frombuffer(published.memory[table.slices[position]], table.codecs[position].item)
                table.codecs[position].encode(target, table.served(position))
                published.blocks.add(block)
        return [published.memory[table.slices[table.position[block]]].toreadonly() for block in blocks]

    # --- replicas: called by the event loop, while no task changes what they are about -------------

    @property
    def sums(self) -> Sums:
        """The sums of updates that every replica is to hold before they are committed."""
        assert self._sums is not None, "only a shard with replicas has them"
        return self._sums

    @property
    def increments(self) -> Increments:
        """How the blocks have changed, for workers that hold an earlier version."""
        assert self._increments is not None, "the shard runs CreateTable before anything else"
        return self._increments

    @property
    def compensator(self) -> Compensator:
        """What workers were given, and the squares of gradients."""
        assert self._compensator is not None, "the shard runs CreateTable before anything else"
        return self._compensator

    @property
    def replicated(self) -> bool:
        """Whether other servers hold the same shard, or may."""
        return self._sums is not None

    def keep_lent(self, servers: Iterable[int]) -> None:
        """Only these servers hold the shard, too: what others lent is let go."""
        if self._sums is not None:
            self._sums.forget(servers)

    def give(self, blocks: Sequence[int]) -> list[memoryview]:
        """Parameters, states and step counts of these blocks as they are now, copied: (bytes,) uint8."""
        return [memoryview(array.tobytes()) for block in blocks for array in self.table.of_block(block)]

    def take_fill(self, fill: m.Fill, payload_bytes: int) -> list[memoryview]:
        """Where the payload of a Fill lands until it is loaded."""
        expected = sum(array.nbytes for block in fill.blocks for array in self.table.of_block(block))
        if expected != payload_bytes:
            raise ProtocolError(f"server {fill.server} gave {payload_bytes} bytes for {expected} of {fill.blocks[:4]}")
        memory = self._fills[fill] = bytearray(payload_bytes)
        return [memoryview(memory)]

    def load_fill(self, fill: m.Fill, wanted: bool) -> None:
        """Take in what came with it, or forget it."""
        memory = self._fills.pop(fill, None)
        if memory is None or not wanted:
            return
        table, position = self.table, 0
        with table.moving():
            for block in fill.blocks:
                for array in table.of_block(block):
                    array.view(np.uint8)[:] = np.frombuffer(memory, np.uint8, array.nbytes, position)
                    position += array.nbytes
                table.absent.discard(table.position[block])
                self.increments.reset(fill.version, table.position[block])
            table.publish()
        table.generation += 1

    # --- shared memory: called by the event loop --------------------------------------------------

    def attach(self, worker: int, incarnation: int, descriptor: int) -> None:
        """Map the arena that this worker's gradients will lie in (ProtocolError if it is none)."""
        if self._table is None or (worker, incarnation) in self._lent:
            os.close(descriptor)
            return  # too early, or again
        if self._table.shared is None:
            os.close(descriptor)
            raise ProtocolError(f"worker {worker} wants to share memory, which this server does not (SHOAL_TRANSPORT)")
        self._lent[worker, incarnation] = Lent(self._table, self._table.shared.pushed_bytes, descriptor)

    def attached(self, contributor: Contributor) -> bool:
        """Whether this contributor's blocks are read where its worker wrote them. Where gradients are packed, the
        seed has no room there."""
        sent = contributor.seeds and self.table.packs
        return not sent and (contributor.worker, contributor.incarnation) in self._lent

    def arena_of(self, contributor: Contributor) -> int:
        """The descriptor of an attached worker's arena, for replicas on this host."""
        return self._lent[contributor.worker, contributor.incarnation].descriptor

    @property
    def descriptor(self) -> int:
        """Of the arena that the parameters lie in, for workers that are attached."""
        assert self.table.arena is not None, "memory is shared only where there is a layout for it"
        return self.table.arena.descriptor

    def stage_in_place(self, contributor: Contributor, blocks: Iterable[int]) -> None:
        """These blocks lie in the worker's arena, and stay as they are until freed. Only of who is attached."""
        lent = self._lent[contributor.worker, contributor.incarnation]
        self._staging.setdefault(contributor, Staging(lent.memory, lent.blocks)).delivered.update(blocks)

    @property
    def stamp(self) -> int:
        """Of the parameters in the arena. Not while a task runs."""
        assert self.table.stamp is not None, "memory is shared only where there is a layout for it"
        return int(self.table.stamp[0])

    def detach(self, over: Callable[[int, int], bool]) -> None:
        """Let go of the arenas of those (worker, incarnation) that are gone."""
        for worker, incarnation in [who for who in self._lent if over(*who)]:
            del self._lent[worker, incarnation]

    @property
    def table(self) -> Table:
        assert self._table is not None, "the shard runs CreateTable before anything else"
        return self._table

    def _staged(self, item: Weighted) -> Staging | None:
        """Where a contributor's blocks lie: staged, or as a whole in its arena without a word; None: nowhere here."""
        who = item.contributor
        staging = self._staging.get(who)
        if staging is None and item.whole and (who.worker, who.incarnation) in self._lent:
            lent = self._lent[who.worker, who.incarnation]
            staging = Staging(lent.memory, lent.blocks, set(self.table.position))
        return staging

    # --- the passes over the blocks ---------------------------------------------------------------

    def _update(self, task: k.Measure | k.Apply) -> Update:
        compensation, applies = task.compensation, isinstance(task, k.Apply)
        if compensation is None and not task.summed:
            return Update.of(self.table, task, self._staged, self._combined)
        if compensation is not None and (applies or not task.summed):
            contributions = weighted(task.contributors, self._staged)
            made_up = self.compensator.gradient(compensation, contributions, applies, self._each, task.summed)
        return Update.of_sum(self.table, task, self.sums.held if task.summed else made_up)

    def _seed(self, staging: Staged | None, contributor: Contributor, summed: bool) -> None:
        table = self.table
        missing = set(table.position).difference(staging.delivered if staging else ())
        if missing:
            raise ProtocolError(f"the seed of worker {contributor.worker} lacks {len(missing)} blocks of this shard")
        if staging is not None:
            codecs = [FLOAT32] * len(table.codecs) if summed else table.codecs
            for codec, parameters, encoded in zip(codecs, table.dense.parameters, staging.blocks, strict=True):
                codec.first(parameters, read_only(encoded), np.float32(1))
        table.publish()
        table.generation += 1

    def _measure(self, update: Update, phase: str) -> Partials:
        measure = MEASURES[phase]
        found = self._each_block(lambda position, scratch: measure(update, position, scratch))
        return tuple((index, values) for index, values in zip(self.table.position, found, strict=True) if values)

    def _copy(self) -> None:
        """Keep all blocks, states and step counts in memory of their own. It stays for the next time: a first touch
        takes ten times as long as a copy."""
        entries = self.table.entries()
        if not self._kept:
            self._kept = self._room_for(entries)
        pairs = [(self._kept[key], array) for key, array in entries.items()]
        self._each(pairs, lambda pair, _: np.copyto(*pair))

    @staticmethod
    def _room_for(entries: Entries) -> dict[Key, npt.NDArray[Any]]:
        """Arrays like these, all in one piece of memory, for the sake of huge pages."""
        offsets = np.cumsum([0, *(-(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES for array in entries.values())])
        memory = np.empty(int(offsets[-1]), np.uint8)
        return {
            key: memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            for (key, array), start in zip(entries.items(), offsets.tolist(), strict=False)
        }

    def _combine(
        self, contributors: tuple[Weighted, ...], held: bool, compensation: k.Compensation | None = None
    ) -> None:
        table = self.table
        if compensation is not None:
            self.compensator.prepare(compensation)
        if compensation is not None or table.spec.reduction == TOKENS:
            self._combined = None  # neither is a sum to go on from with others
        memory = self._sums.own if self._sums is not None else None
        combined, self._combined = self._combined or Combined.of(table, memory), None  # forgotten if it fails
        combined.expect(contributors)
        contributions = weighted(contributors, self._staged)

        def work(position: int, scratch: Floats) -> None:
            if held or not self._hurried:
                further = contributions[combined.taken[position] :]
                combined.add(table, position, of_block(table, further, position), scratch)
                if compensation is not None and combined.filled[position]:
                    self.compensator.make_up(compensation, position, combined.sums[position])

        self._each_block(work)
        self._combined = combined if compensation is None else None
        if held:
            self.sums.hold_own([position for position, filled in enumerate(combined.filled) if filled])

    def _apply(self, update: Update, version: int, updated: Callable[[int], None], runs: bool) -> None:
        """runs: contributions lie in memory as the parameters do."""
        table, increments = self.table, self.increments
        table.generation += 1
        if runs and update.by_runs:
            self._each(table.runs, lambda run, scratch: apply_run(update, run, scratch))
            table.dense.steps += 1
            increments.reset(version)
        else:

            def work(position: int, scratch: Floats) -> None:
                if apply_block(update, position, scratch):
                    increments.encode(position, scratch)
                    updated(table.blocks[position].index)

            present = [position for position in range(len(table.blocks)) if position not in table.absent]
            increments.begin(version)
            self._each(present, work)
            increments.end()

    def _each_block(self, work: Callable[[int, Floats], R]) -> list[R]:
        return self._each(range(len(self.table.blocks)), work)

    def _each(self, items: Sequence[T], work: Callable[[T, Floats], R]) -> list[R]:
        """work(item, scratch) for each item, by as many threads as there are; results in order."""
        if self._helpers is None or len(items) == 1:
            return [work(item, self._scratch[0]) for item in items]
        queue = deque(range(len(items)))
        results: dict[int, R] = {}

        def drain(scratch: Floats) -> None:
            while True:
                try:
                    index = queue.popleft()
                except IndexError:
                    return
                results[index] = work(items[index], scratch)

        helping = [self._helpers.submit(drain, scratch) for scratch in self._scratch[1:]]
        drain(self._scratch[0])
        for helper in helping:
            helper.result()
        return [results[index] for index in range(len(items))]


class Lent:
    """A worker's arena, mapped here (ProtocolError if it is none). descriptor: of the arena, for those it may be passed
    on to; it is closed with this."""

    def __init__(self, table: Table, size_bytes: int, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.memory = reader(os.dup(descriptor), size_bytes)
        self.blocks = table.encoded(self.memory)


@dataclass
class Staging:
    """What one contributor has sent so far: its memory, where bytes arrive unless it is the worker's own, and the
    blocks in it, by position."""

    memory: memoryview
    blocks: Blocks
    delivered: set[int] = field(default_factory=set)
    awaited: set[int] = field(default_factory=set)  # where memory was lent for their bytes


@dataclass
class Published:
    """The parameters of one generation, encoded so far for these blocks."""

    generation: int
    memory: memoryview
    blocks: set[int] = field(default_factory=set)
