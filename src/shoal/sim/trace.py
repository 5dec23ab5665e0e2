"""What happened in a simulated run, as seen from outside the machines; facts for the invariants.

Numbers are symbols here. A staged payload is a tag that names the computation it came from; the
state of a block is a digest over all that was applied to it. So a contribution that is mixed,
lost or doubled, even in one block, gives another digest, and the trace knows which one is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import get_args

from shoal.core import machine as k
from shoal.optim import phases
from shoal.placement import cut, owned
from shoal.sim.books import Books, Seat, Who
from shoal.sim.feedback import Residual, Taken
from shoal.vocabulary import Contributor, PolicySpec, TableSpec, Weighted
from shoal.wire import messages as m

Unit = tuple[Who, ...]  # workers that train as one
Tag = tuple[int, int, int, int]  # worker, nonce of its life, number of the computation, block
WeightedTags = tuple[tuple[float, Tag], ...]
States = Mapping[int, int]  # by block
Factors = tuple[tuple[str, tuple[float, ...]], ...]

# --- facts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """The coordinator sent a message (whether or not it arrives)."""

    target: str
    message: m.Message
    at_ms: int = 0


@dataclass(frozen=True)
class Told:
    """The coordinator is about to receive a message."""

    source: str
    message: m.Message
    at_ms: int = 0


@dataclass(frozen=True)
class Performed:
    """A shard's store ran a task. staged: the tags that lay there for each contributor, by block.

    onlookers: (worker, incarnation) of those that compute on this shard's parameters where they lie.
    """

    shard: int
    task: k.Seed | k.Measure | k.Apply
    staged: Mapping[Contributor, Mapping[int, Tag]]
    states: States  # afterwards
    onlookers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Freed:
    shard: int
    contributors: tuple[Contributor, ...]


@dataclass(frozen=True)
class Published:
    shard: int
    effect: k.Publish
    states: States


@dataclass(frozen=True)
class Saw:
    """A worker's training thread goes on with these states in its parameters."""

    worker: int
    incarnation: int
    version: int
    clock: int
    finished: Contributor | None  # the contribution that was settled with it
    committed: bool
    states: States
    in_place: bool = False  # they lie in the servers' own memory
    part: frozenset[int] = frozenset()  # the blocks that it is to have


@dataclass(frozen=True)
class MadeUp:
    """A server makes up for what has changed since a gradient was computed. then: the states its worker was given, as
    far as the server knows; None: it does not. alone: nobody else holds the shard, so it must."""

    shard: int
    contributor: Contributor
    base: int
    then: States | None
    alone: bool


@dataclass(frozen=True)
class Fed:
    """A worker goes on with what its codec had lost: the codes of these contributions were taken from it."""

    worker: int
    taken: Taken


@dataclass(frozen=True)
class Saved:
    """A snapshot is whole, with these residuals."""

    version: int
    residuals: tuple[Residual, ...]


@dataclass(frozen=True)
class Entered:
    """An update has entered the log. lacking: servers that follow the log and do not hold its sum."""

    seq: int
    lacking: tuple[int, ...]


@dataclass(frozen=True)
class Led:
    """The registry lets a coordinator of this epoch lead."""

    epoch: int


@dataclass(frozen=True)
class Spoke:
    """A coordinator sends something. until: as long as the registry has told it that it leads, by its own clock."""

    epoch: int
    now: int
    until: int


@dataclass(frozen=True)
class Kept:
    """A placement is in the registry now, written by the coordinator of this epoch."""

    epoch: int
    view: int


@dataclass(frozen=True)
class Gone:
    """A worker's process ended. killed: it did not leave of its own will."""

    worker: int
    incarnation: int
    killed: bool


@dataclass(frozen=True)
class Admitted:
    """A shard at `version` took blocks of a contribution into its memory."""

    shard: int
    contributor: Contributor
    version: int


@dataclass(frozen=True)
class Ended:
    """The job is over. staged: what still lies in each shard's staging memory. ages, dropped: as `shoal status` has
    them."""

    staged: Mapping[int, tuple[Contributor, ...]]
    ages: Mapping[int, int]
    dropped: int


Fact = (
    Said
    | Told
    | Admitted
    | Performed
    | Freed
    | Published
    | Saw
    | MadeUp
    | Fed
    | Saved
    | Entered
    | Led
    | Spoke
    | Kept
    | Gone
    | Ended
)
FACTS = get_args(Fact)

FORGED = -666.0  # a number that only messages of an older epoch carry

# --- symbols ------------------------------------------------------------------------------------


def following(
    states: States, combined: Mapping[int, WeightedTags], rates: tuple[float, ...], by: Factors
) -> dict[int, int]:
    """The states of blocks after one more commit; one that no gradient reaches stays as it is."""
    numbers = by_numbers(by)
    return {
        block: hash((state, combined[block], rates, numbers)) if combined[block] else state
        for block, state in states.items()
    }


def by_numbers(factors: Factors) -> tuple[tuple[float, ...], ...]:
    """Factors without the names of their phases: strings hash differently in every process."""
    return tuple(values for _, values in factors)


def measured(
    spec: TableSpec, phase: str, states: States, combined: Mapping[int, WeightedTags], by: Factors
) -> dict[int, tuple[float, ...]]:
    """Partials of a phase: figures that differ if anything that goes into them does."""
    partials: dict[int, tuple[float, ...]] = {}
    for block, state in states.items():
        if not combined[block]:
            continue  # no gradient reaches it
        figure = hash((state, combined[block], by_numbers(by)))
        one, other = float(1 + figure % 9973), float(1 + figure % 8887)
        tensor = cut(spec)[block].tensor
        if phase == phases.MERGE and tensor not in spec.radial:
            continue
        facts = {phases.TRUST: (tensor, one, other), phases.MERGE: (tensor, 2.0, 1.0, 1.0, one, 0.0, other)}
        partials[block] = facts.get(phase, (one,))
    return partials


def combine(
    contributors: Iterable[Weighted], tags: Mapping[Contributor, Mapping[int, Tag]], blocks: Iterable[int]
) -> dict[int, WeightedTags]:
    """What a commit combines in each block, in the order of the commit."""
    parts = [(item.weight, tags.get(item.contributor, {})) for item in contributors]
    return {block: tuple((weight, part[block]) for weight, part in parts if block in part) for block in blocks}


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


# --- the trace ------------------------------------------------------------------------------------


@dataclass
class Trace:
    """The history so far. An invariant sees it as it was before the fact in question."""

    spec: TableSpec
    servers: int  # that the job begins with
    log: list[m.Commit] = field(default_factory=list)  # the coordinator's, by seq - 1
    committed: dict[Contributor, int] = field(default_factory=dict)  # -> seq
    finished: dict[Contributor, dict[int, Tag]] = field(default_factory=dict)  # what each step pushed
    ready: dict[Contributor, m.Ready] = field(default_factory=dict)  # as the coordinator received it
    ready_at: dict[Contributor, int] = field(default_factory=dict)  # in ms, when it was received
    offers: dict[Contributor, tuple[m.Ready, set[int]]] = field(default_factory=dict)  # and shards that lack blocks
    chains: tuple[tuple[int, ...], ...] = ()  # by shard its servers, as everybody was told last
    filling: set[int] = field(default_factory=set)  # those of them that had not all of it
    fenced: dict[int, int] = field(default_factory=dict)  # worker -> incarnations up to this one
    welcomed: dict[int, int] = field(default_factory=dict)  # worker -> its last incarnation
    applied: dict[int, int] = field(default_factory=dict)  # by server: the last seq whose task ran
    freed: set[tuple[int, Contributor]] = field(default_factory=set)
    computed_on: dict[tuple[int, int, int], int] = field(default_factory=dict)  # worker, incarnation, clock -> version
    states: list[dict[int, int]] = field(default_factory=list)  # by version: the one right state
    killed: set[tuple[int, int]] = field(default_factory=set)
    groups: dict[Who, tuple[Who, ...]] = field(default_factory=dict)  # by (worker, incarnation) of those in a group
    led: int = 0  # the last epoch under which some coordinator led
    kept: tuple[int, int] = (0, 0)  # (epoch, view) of the placement in the registry
    books: Books = field(init=False)

    def __post_init__(self) -> None:
        self.books = Books(self.spec)
        self.applied = dict.fromkeys(range(self.servers), 0)
        self.states = [dict.fromkeys(range(len(cut(self.spec))), 0)]

    def remember(self, fact: Fact) -> None:
        """Add a fact that no invariant objects to."""
        match fact:
            case Said(message=message):
                new = isinstance(message, m.Commit) and message.seq > len(self.log)
                self.books.said(message, new)
            case Told(message=m.Complete() as complete):
                self._completed(complete, fact.at_ms)
            case Told(message=message):
                self.books.told(message)
        match fact:
            case Said(message=m.Commit() as commit) if commit.seq == len(self.log) + 1:
                self.log.append(commit)
                self.committed.update({item.contributor: commit.seq for item in commit.contributors})
                for worker, incarnation in commit.fences:
                    self.fenced[worker] = max(incarnation, self.fenced.get(worker, -1))
            case Said(message=m.Placed(chains=chains, filling=filling)):
                self.chains, self.filling = chains, set(filling)
            case Said(message=m.Welcome(worker=worker, incarnation=incarnation, placed=placed)):
                self.chains = placed.chains
                self.welcomed[worker] = max(incarnation, self.welcomed.get(worker, -1))
            case Told(message=m.Declare(worker=worker, incarnation=incarnation, group=group)) if group:
                self.groups[worker, incarnation] = group
            case Told(message=m.Ready() as ready):
                self.ready.setdefault(ready.contributor, ready)
                self.ready_at.setdefault(ready.contributor, fact.at_ms)
            case Told(message=m.Offer(ready=ready)):
                self.offers[ready.contributor] = ready, {shard for shard, count in enumerate(ready.blocks) if count}
            case Performed(shard=shard, task=k.Seed(seq=seq) | k.Apply(seq=seq)):
                self.applied[shard] = seq
            case Saw(worker=worker, incarnation=incarnation, clock=clock, version=version):
                self.computed_on[worker, incarnation, clock] = version
            case Freed(shard=shard, contributors=contributors):
                self.freed.update((shard, contributor) for contributor in contributors)
            case Led(epoch=epoch):
                self.led = epoch
            case Kept(epoch=epoch, view=view):
                self.kept = (epoch, view)
            case Gone(worker=worker, incarnation=incarnation, killed=True):
                self.killed.add((worker, incarnation))
            case _:
                pass

    def forget(self, version: int) -> None:
        """The coordinator is gone, and what no shard has heard of the log with it."""
        del self.log[version:], self.states[version + 1 :]
        self.committed = {who: seq for who, seq in self.committed.items() if seq <= version}
        self.fenced = {}
        for entry in self.log:
            for worker, incarnation in entry.fences:
                self.fenced[worker] = max(incarnation, self.fenced.get(worker, -1))
        self.offers.clear()
        self.welcomed.clear()  # whoever was, and is in no entry, is not known to the next one
        self.books.forget(self.log)

    def taken(self, worker: int, version: int | None = None) -> Taken:
        """The contributions of this rank that the log has combined, up to that version."""
        found = (item.contributor for entry in self.log[:version] for item in entry.contributors)
        return tuple(who for who in found if who.worker == worker and not who.seeds)

    def _completed(self, complete: m.Complete, at_ms: int) -> None:
        """An offer is as good as Ready once all shards say so."""
        ready, lacking = self.offers.get(complete.contributor, (None, set[int]()))
        lacking.difference_update(
            shard for shard, chain in enumerate(self.chains) if chain and chain[0] == complete.server
        )
        if ready is not None and not lacking:
            self.books.told(ready)
            self.ready.setdefault(ready.contributor, ready)
            self.ready_at.setdefault(ready.contributor, at_ms)

    def policies_until(self, who: Contributor) -> list[PolicySpec]:
        """Under which this contribution may have been dropped: the one in force when it was, or, where samples of its
        were taken back before, all that were until then."""
        policies = [self.spec.policy]
        for entry in self.log:
            if (who.worker, who.incarnation, who.clock) in entry.closes:
                return policies[-1:] if entry.kind == "cut" else policies
            policies += [] if entry.switch is None else [entry.switch.policy]
        return policies

    def unit(self, worker: int, incarnation: int) -> tuple[Who, ...]:
        """(worker, incarnation) of all that train with it as one."""
        return self.groups.get((worker, incarnation), ((worker, incarnation),))

    def unit_ready(self, who: Contributor) -> list[m.Ready]:
        """What all of its unit were ready with for its clock."""
        unit = self.unit(who.worker, who.incarnation)
        return [
            ready
            for other, ready in self.ready.items()
            if other.clock == who.clock and (other.worker, other.incarnation) in unit
        ]

    def busy(self) -> list[Seat]:
        """Members that policies count: not those whose group has lost one."""
        return [
            seat
            for seat in self.books.busy()
            if all(who[1] > self.fenced.get(who[0], -1) for who in self.unit(seat.worker, seat.incarnation))
        ]

    def age(self, worker: int, incarnation: int, clock: int, seq: int) -> int:
        """How many updates lie between what was computed on and the entry `seq`."""
        version = self.computed_on[worker, incarnation, clock]
        return sum(bool(entry.contributors) for entry in self.log[version : seq - 1])

    def right_states(self, version: int) -> dict[int, int]:
        """The states of all blocks after the first `version` commits of the log, from what workers pushed."""
        while len(self.states) <= version:
            commit = self.log[len(self.states) - 1]
            before = self.states[-1]
            combined = combine(commit.contributors, self.finished, before)
            if commit.kind == "seed":
                before = following(before, combined, (), ())
            elif commit.contributors:
                factors: Factors = ()
                for phase in phases.phases(self.spec):
                    partials = measured(self.spec, phase, before, combined, factors)
                    factors += ((phase, phases.reduce(self.spec, phase, partials)),)
                before = following(before, combined, commit.rates, factors)
            self.states.append(before)
        return self.states[version]
