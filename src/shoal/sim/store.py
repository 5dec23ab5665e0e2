"""The memory of a simulated shard, over symbols."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.placement import owned
from shoal.sim.symbols import States, Tag, WeightedTags, combine, following, measured
from shoal.vocabulary import Contributor, TableSpec, Weighted
from shoal.wire import messages as m


class Arena(dict[int, Tag]):
    """Memory of a worker that servers on its host read where it lies: what it writes later, they see."""


@dataclass
class Store:
    """A shard's memory: the state of each block, and the tags staged for it.

    stamp is odd while a task changes the states, and grows with every change.
    """

    spec: TableSpec
    blocks: tuple[int, ...] = ()  # of the shard
    states: dict[int, int] = field(default_factory=dict)
    staged: dict[Contributor, dict[int, Mapping[int, Tag]]] = field(default_factory=dict)  # block -> where its tag lies
    lent: dict[tuple[int, int], Arena] = field(default_factory=dict)  # (worker, incarnation) -> its shared memory
    stamp: int = 2
    sums: dict[int, WeightedTags] = field(default_factory=dict)  # memory that near backups read where it lies
    held: tuple[dict[int, WeightedTags], tuple[int, ...]] = field(default_factory=lambda: ({}, ()))  # where, of what
    fills: dict[m.Fill, States] = field(default_factory=dict)  # came, and are not loaded
    early: dict[Weighted, dict[int, Tag]] = field(default_factory=dict)  # combined before its commit, in order
    past: dict[int, States] = field(default_factory=dict)  # states since the last that were loaded, by version
    copies: dict[int, States] = field(default_factory=dict)  # what workers were given, by version

    def stage(self, contributor: Contributor, blocks: Iterable[int], tags: Mapping[int, Tag]) -> None:
        where = tags if isinstance(tags, Arena) else dict(tags)
        self.staged.setdefault(contributor, {}).update(dict.fromkeys(blocks, where))

    def tags(self, contributors: Iterable[Weighted]) -> dict[Contributor, dict[int, Tag]]:
        """What lies there now for each contributor, by block."""
        found: dict[Contributor, dict[int, Tag]] = {}
        for item in contributors:
            who = item.contributor
            arena = self.lent.get((who.worker, who.incarnation))
            whole = dict.fromkeys(self.states, arena) if item.whole and arena is not None else {}
            found[who] = {block: where[block] for block, where in self.staged.get(who, whole).items() if block in where}
        return found

    def free(self, contributors: Iterable[Contributor]) -> None:
        for contributor in contributors:
            self.staged.pop(contributor, None)

    def perform(self, task: k.Task) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """Run one task; returns what Done carries."""
        match task:
            case k.CreateTable(spec=spec, shard=shard, shards=shards, absent=absent):
                self.blocks = owned(spec, shard, shards)
                self.states = {} if absent else dict.fromkeys(self.blocks, 0)
            case k.Seed(contributor=contributor, summed=summed):
                combined = self._sum() if summed else self._combined((Weighted(contributor, 1.0),))
                self.states = self.past[task.seq] = following(self.states, combined, (), ())
            case k.Combine(contributors, held):
                tags = self.tags(contributors)
                combined = self._combined(contributors)
                self.early = {item: tags[item.contributor] for item in contributors}
                self.sums.update(combined)
                if held:
                    self.hold(self.sums, tuple(block for block, parts in combined.items() if parts))
            case k.Apply(contributors=contributors, rates=rates, factors=factors, summed=summed):
                self._keep(task.compensation)
                combined = self._sum() if summed else self._combined(contributors)
                self.states = self.past[task.seq] = following(self.states, combined, rates, factors)
            case k.Measure(phase=phase, contributors=contributors, factors=factors, summed=summed):
                combined = self._sum() if summed else self._combined(contributors)
                return tuple(measured(self.spec, phase, self.states, combined, factors).items())
        return ()

    def given(self, compensation: k.Compensation) -> States | None:
        """What the worker was given whose gradient is to be compensated; None: it is not known any more."""
        present = self.states if compensation.base == compensation.present else None
        return self.copies.get(compensation.base, present)

    def _keep(self, compensation: k.Compensation | None) -> None:
        needed = () if compensation is None else compensation.needed
        self.copies = {version: copy for version, copy in self.copies.items() if version in needed}
        if compensation is not None and compensation.present in needed:
            self.copies.setdefault(compensation.present, dict(self.states))

    def hold(self, memory: dict[int, WeightedTags], blocks: tuple[int, ...]) -> None:
        """The sum that the next commit applies lies there."""
        self.held = memory, blocks

    def load(self, fill: m.Fill, wanted: bool) -> None:
        states = self.fills.pop(fill, None)
        if states is not None and wanted:
            self.states.update(states)
            self.past.clear()

    def at(self, version: int) -> States:
        """The states at that version, as far as they are remembered."""
        known = [seq for seq in self.past if seq <= version]
        return self.past[max(known)] if known else {}

    @property
    def checksum(self) -> int:
        """Of all blocks; 0 while some are missing."""
        if len(self.states) < len(self.blocks):
            return 0
        return hash(tuple(sorted(self.states.items()))) & 0xFFFFFFFF | 1

    def _sum(self) -> dict[int, WeightedTags]:
        memory, blocks = self.held
        return {block: memory.get(block, ()) if block in blocks else () for block in self.states}

    def _combined(self, contributors: tuple[Weighted, ...]) -> dict[int, WeightedTags]:
        tags = self.tags(contributors)
        for item, (early, found) in zip(contributors, self.early.items(), strict=False):
            if item != early:
                break
            tags[item.contributor] = found
        return combine(contributors, tags, self.states)
