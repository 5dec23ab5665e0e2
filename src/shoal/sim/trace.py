"""The history of a simulated run, out of facts; it knows what every block's state must be.

What workers pushed and what the log says was made of it give one right digest for each block and version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.optim import phases
from shoal.placement import cut
from shoal.sim.books import Books, Seat, Who
from shoal.sim.facts import Fact, Freed, Gone, Kept, Led, Performed, Said, Saw, Told
from shoal.sim.feedback import Taken
from shoal.sim.symbols import Factors, Tag, combine, following, measured
from shoal.vocabulary import Contributor, PolicySpec, TableSpec
from shoal.wire import messages as m

Unit = tuple[Who, ...]  # workers that train as one


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
    groups: dict[Who, Unit] = field(default_factory=dict)  # by (worker, incarnation) of those in a group
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

    def unit(self, worker: int, incarnation: int) -> Unit:
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
