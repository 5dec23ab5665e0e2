"""The course of a job that runs: what is committed next, and who goes on with it, clock by clock.

What it promises: nothing is committed that the policy in force does not want, and nothing that is too old for it; an
entry settles all ranks of a group or none; a worker goes on only with a version the policy allows. It acts on members
and on the log, and knows neither connections nor time but for how long somebody has been ready.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from shoal.core import machine as k
from shoal.core.commit_log import CommitLog, usable
from shoal.core.dispatch import Dispatch
from shoal.core.foresight import Foresight
from shoal.core.formation import Formation
from shoal.core.membership import COMPUTING, IDLE, PARKED, READY, Member, Membership
from shoal.core.proposal import Proposals
from shoal.core.regime import Regime
from shoal.core.release import Releases
from shoal.core.replicas import Replicas
from shoal.core.unit import Units, readies, weighed
from shoal.policy import Go, Policy, View, in_words
from shoal.vocabulary import TOKENS, PolicySpec, Switch, TableSpec, Weighted
from shoal.wire import messages as m


@dataclass
class Course:
    """Decides as soon as there is an open clock.

    waiting: what the job waits for, in words. impatient: what it waits for is time.
    """

    formation: Formation
    membership: Membership
    units: Units
    replicas: Replicas
    dispatch: Dispatch
    log: CommitLog
    releases: Releases
    proposals: Proposals
    regime: Regime
    clock: int = 0  # the open one of a lockstep policy; 0: the job does not run yet
    waiting: str = ""
    impatient: bool = False
    foresight: Foresight = field(default_factory=Foresight)

    @property
    def policy(self) -> Policy | None:
        """In force: the one that the table declares, unless another one has taken its place."""
        return self.regime.policy or self.formation.policy

    @property
    def begun(self) -> bool:
        """Whether the job runs."""
        return self.clock > 0

    @property
    def lockstep(self) -> bool:
        """Whether clocks have a common meaning."""
        return self.policy is not None and self.policy.lockstep

    def begin(self, clock: int) -> None:
        """The job runs, from this clock on."""
        self.clock = clock

    def admit(self, members: list[Member], now: int) -> list[k.Effect]:
        """Give members their first parameters; from now on the policy counts them."""
        clock = self._joining_clock()
        for member in members:
            member.clock = clock
        return self.releases.append(self.log.cut(), members, now)

    def ready(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        """All of a contribution is staged. Of a clock that is over, the answer is repeated."""
        clock = ready.contributor.clock
        if clock < member.clock or member.state in (READY, PARKED):
            return self.releases.again(member, clock, self.waiting)
        if member.state != COMPUTING or clock != member.clock:
            return []
        member.computed(ready, now)
        if not self.dispatch.holds(member, ready):
            # Someone else does these samples by now: its gradient may not count as well.
            self.dispatch.take_back(member)
            ready = msgspec.structs.replace(ready, leases=(), void=True)
            for mate in self.units.of(member):
                mate.dropped = True
        member.ready, member.state = ready, READY
        return self._drop_late([member], now) + self.decide(now)

    def held(self, now: int) -> list[k.Effect]:
        """Every replica holds the proposed update: it is committed, if it is still what the policy wants."""
        proposal = self.proposals.take()
        members = [self.membership.members.get(worker) for worker in proposal.workers]
        contributors = [member for member in members if member is not None and member.ready is not None]
        ready = tuple(sorted({member.unit for member in contributors}))
        assert self.policy is not None
        wanted = self.policy.commit(replace(self._view(now), ready=frozenset(ready)))
        here = tuple(member.worker for member in contributors) == proposal.workers
        same = here and isinstance(wanted, Go) and wanted.workers == ready
        if same and self._weights(contributors) == proposal.weights:
            return self._commit(contributors, now) + self.decide(now)
        return self.decide(now)

    def lease(self, member: Member, request: m.LeaseRequest, now: int) -> list[k.Effect]:
        """A member asks for samples."""
        opens = self.dispatch.ledger is None
        answer = self.dispatch.ask(member, request, self.membership.ordered(), self.waiting)
        done = self.dispatch.done_before() if opens else 0
        told = [k.Log(f"{done} samples are in the log of the snapshot: they are not dealt again")] if done else []
        return [*told, *(self.decide(now) if answer is None else answer)]

    def change(self, source: str, wanted: PolicySpec, now: int) -> list[k.Effect]:
        """Somebody wants another policy: it takes over now, or once workers have come to rest."""
        assert self.policy is not None
        if wrong := self.regime.want(wanted, self.policy):
            return [k.Send(source, m.PolicySet(self.policy.spec, self.regime.since, error=wrong))]
        effects = self.decide(now)
        return [*effects, k.Send(source, self.regime.answer(self._spec, self.policy))]

    def decide(self, now: int) -> list[k.Effect]:
        """Commit what the policy lets, then let go on whom it lets."""
        if not self.begun or self.policy is None:
            return []
        effects: list[k.Effect] = []
        self.impatient = False
        while isinstance(verdict := self.policy.commit(self._view(now)), Go):
            contributors = self.units.members_of(verdict.workers)
            if outdated := [unit for unit in self.units.whole(contributors) if self._outdated(unit)]:
                for unit in outdated:  # someone else does its samples
                    dropped = self._dropped(unit, unit[0].clock + 1)
                    readers = [] if self._spreads(self.log.updated) else self._readers()
                    effects += self.releases.append(dropped, readers, now)
                continue
            weights = self._weights(contributors) if self.replicas.replicated else ()
            if weights:
                # The update enters the log once every replica holds it.
                effects += self.proposals.begin(contributors, weights, now) if self.proposals.free else []
                self.waiting = "every replica is to hold the update before it is committed"
                break
            effects += self._commit(contributors, now)
        else:
            self.waiting, self.impatient = verdict.reason, verdict.left_ms > 0
        if self._spreads(self.log.updated):
            self.waiting = "every replica is to apply the update before its workers go on"
            return effects
        if self.regime.wanted is not None:
            effects += self._switch(now)
        if self.regime.holds(self.policy):
            return effects
        readers = self._readers()
        if readers:
            effects += self.releases.append(self.log.cut(), readers, now)
        return effects + self._answer_leases(now)

    def foresee(self) -> list[k.Effect]:
        """Someone has been awaited for a tick: what the others brought can be combined meanwhile."""
        if not self.begun or not self.lockstep:
            return []
        if self.replicas.replicated and not self.proposals.free:
            return []  # the memory in which it would be combined is in use
        if self._spec.reduction == TOKENS or self._spec.radial:
            return []  # weights are the blocks' own
        busy = [member for member in self.membership.ordered() if member.busy]
        return self.foresight.tell(busy, self._spec.reduction, self.log.epoch, self.replicas.primaries)

    # --- what is committed ----------------------------------------------------------------------

    @property
    def _spec(self) -> TableSpec:
        assert self.formation.spec is not None
        return self.formation.spec

    def _view(self, now: int) -> View:
        """What the policy may know. Without a common clock, nobody waits for those that rest until another one takes
        over."""
        return self.units.view(now, not self.lockstep and self.regime.holds(self.policy))

    def _weights(self, contributors: list[Member]) -> tuple[Weighted, ...]:
        units = [readies(unit) for unit in self.units.whole(contributors)]
        return weighed(((unit, self._factor(unit) or 0.0) for unit in units), self._spec.reduction)

    def _factor(self, unit: list[m.Ready]) -> float | None:
        """By its age; None: it is too old."""
        assert self.policy is not None
        return self.policy.weigh(max(self.log.ages.of(ready.version) for ready in unit))

    def _outdated(self, unit: list[Member]) -> bool:
        """Whether its contribution, which is ready, is too old for the policy."""
        return usable(readies(unit)) and self._factor(readies(unit)) is None

    def _commit(self, contributors: list[Member], now: int) -> list[k.Effect]:
        """One entry: these members' contributions, combined."""
        settled, weights = readies(contributors), self._weights(contributors)
        samples: list[tuple[int, int, int]] = []
        for member, ready in zip(contributors, settled, strict=True):
            samples += self.dispatch.settle(member, ready)
            member.samples += ready.samples
            member.ready, member.state, member.settled = None, PARKED, member.clock
            member.clock += 1
        self.clock = max(self.clock, *(member.clock for member in contributors))
        for member in self.membership.members.values():
            if self._late(member):
                self.dispatch.take_back(member)  # too late for this commit: someone else will do them
        entry = self.log.update(settled, weights, tuple(samples))
        finishers = self.dispatch.finishers(self.membership.ordered())
        update = entry.seq if entry.contributors else self.log.updated
        readers = [] if self._spreads(update) else self._readers() + finishers
        # Who became ready while the replicas came to hold the update is too late.
        return self.releases.append(entry, readers, now) + self._drop_late(self.membership.ordered(), now)

    def _drop_late(self, members: list[Member], now: int) -> list[k.Effect]:
        """Those of them that are ready too late for their commit (quorum): their samples were freed then; they go on
        at the open clock."""
        effects: list[k.Effect] = []
        for member in members:
            if self._late(member) and self.units.ready(member):
                unit = self.units.of(member)
                dropped = self._dropped(unit, self.clock)
                effects += self.releases.append(dropped, [] if self.regime.holds(self.policy) else unit, now)
        return effects

    def _late(self, member: Member) -> bool:
        """Whether the clock it works on, or has made ready, is over."""
        return self.lockstep and member.state in (COMPUTING, READY) and member.clock < self.clock

    def _dropped(self, unit: list[Member], clock: int) -> m.Commit:
        """The entry that drops what these are ready with: they go on at `clock`, as if it had been committed, and are
        told."""
        dropped = readies(unit)
        for member in unit:
            self.dispatch.take_back(member)
            member.ready, member.state, member.dropped = None, PARKED, True
            member.settled, member.clock = member.clock, clock
        self.clock = max(self.clock, clock)
        return self.log.drop(dropped)

    def _switch(self, now: int) -> list[k.Effect]:
        """Let the policy that is wanted take over, if nobody has to come to rest for it any more."""
        wanted, policy = self.regime.wanted, self.policy
        assert wanted is not None and policy is not None
        switch, readers, members = Switch(wanted), list[Member](), self.membership.ordered()
        if self.regime.holds(policy):
            restless = self.regime.restless(policy, members)
            if restless or self.proposals.current is not None:
                self.waiting = self.regime.awaited(restless)
                return []
            switch, readers = self.regime.level(members, self.clock)
            self.clock = switch.clock
        entry = self.log.cut(switch=switch)
        self.regime.begin(switch, entry.seq)
        told = k.Log(f"{in_words(wanted)} is in force from version {entry.seq} on, in place of {in_words(policy.spec)}")
        return [told, *self.releases.append(entry, readers, now), *self.decide(now)]

    # --- who goes on ------------------------------------------------------------------------------

    def _spreads(self, update: int) -> bool:
        """Whether a replica may yet read what members pushed for this update where it lies: who went on now would push
        the next there."""
        return self.replicas.replicated and update > self.log.stable

    def _readers(self) -> list[Member]:
        """Parked members that the policy lets go on."""
        assert self.policy is not None
        if self.regime.holds(self.policy):
            return []
        view = self.units.view()
        readers: list[Member] = []
        for member in self.membership.ordered():
            if member.state != PARKED:
                continue
            verdict = self.policy.read(view, member.clock - 1)
            if verdict is None:
                readers.append(member)
            else:
                self.waiting = verdict.reason
        return readers

    def _answer_leases(self, now: int) -> list[k.Effect]:
        """Let idle members go on: with samples, or to the end of their data epoch."""
        effects: list[k.Effect] = []
        while answers := self.dispatch.next_answers(self.membership.ordered(), self.lockstep, self.clock):
            old = [member for member, _ in answers if member.version < max(self.log.updated, self.regime.since)]
            stale = [member for member, _ in answers if any(map(member.shares, old))]  # a group has one version
            if stale:
                effects += self.releases.append(self.log.cut(), stale, now)
            for member, lease in answers:
                member.clock = max(member.clock, self._joining_clock())
                member.state, member.started_at = COMPUTING, now
                effects += self.dispatch.answer(member, lease)
        return effects

    def _joining_clock(self) -> int:
        """Where a worker starts or goes on that has no clock of its own yet."""
        if self.lockstep:
            return self.clock
        others = [item.clock for item in self.membership.members.values() if item.busy or item.state == IDLE]
        return min(others, default=self.clock)
