"""Planted faults: machines that are wrong in one way each, to prove that the simulation would see it.

Each plant names the invariant that must catch it. A plant overrides as little as it can, so that
everything else goes on as in the real machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from shoal.core import machine as k
from shoal.core.arrival import Arrival
from shoal.core.coordinator import Coordinator
from shoal.core.dispatch import Dispatch
from shoal.core.membership import COMPUTING, Member
from shoal.core.session import Session
from shoal.core.shard import Shard
from shoal.ledger import Ledger
from shoal.policy import Bounded, Go, Policy, Sync, View, Wait
from shoal.sim.world import Machines
from shoal.vocabulary import Contributor, Dataset, Lease, Weighted
from shoal.wire import messages as m


@dataclass(frozen=True)
class Plant:
    """A fault in words, the invariant that must catch it, and the machines that have it."""

    fault: str
    invariant: str
    machines: Machines


# --- shards -------------------------------------------------------------------------------------


class AppliesTwice(Shard):
    """No duplicate check: a commit that comes again is applied again."""

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        if commit.seq == self.version and self.progress is None and self.running is None and commit.contributors:
            self.version -= 1
        return super()._commit(commit)


class AppliesOutOfOrder(Shard):
    """Takes whatever commit came first."""

    def _advance(self) -> list[k.Effect]:
        if self.pending and self.progress is None and self.running is None:
            self.version = min(self.pending) - 1
        return super()._advance()


class IgnoresFences(Shard):
    """Goes on staging for the dead."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        self.fenced.clear()
        return super().step(event, now)


class IgnoresEpochs(Shard):
    """Follows whoever speaks, also a coordinator that was replaced."""

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        return super()._commit(msgspec.structs.replace(commit, epoch=self.epoch))


class FreesTooEarly(Shard):
    """Frees what a commit combines when it begins, not when it is applied."""

    def _compute(self) -> list[k.Effect]:
        assert self.progress is not None
        contributors = tuple(item.contributor for item in self.progress.commit.contributors)
        return [k.Free(contributors), *super()._compute()]


class NeverFrees(Shard):
    """Keeps what was settled."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        return [effect for effect in super().step(event, now) if not isinstance(effect, k.Free)]


class ServesAnyVersion(Shard):
    """Answers a pull of an older version with what it has now."""

    def _pull(self, pull: m.Pull) -> list[k.Effect]:
        blocks = tuple(sorted(set(pull.blocks) & set(self.blocks)))
        return [k.Publish(pull.worker, pull.incarnation, pull.version, blocks)] if blocks else []


class AcknowledgesUnstaged(Shard):
    """Says Staged for a whole tensor's worth when one block of it came (and the rest was lost)."""

    def _stage(self, stage: m.Stage) -> list[k.Effect]:
        effects = super()._stage(stage)
        return [
            k.Send(effect.to, msgspec.structs.replace(effect.message, blocks=self.blocks))
            if isinstance(effect, k.Send) and isinstance(effect.message, m.Staged)
            else effect
            for effect in effects
        ]


class TrustsForesight(Shard):
    """Applies what was foreseen in place of what was committed."""

    foreseen: tuple[Weighted, ...] = ()

    def _foresee(self, foresee: m.Foresee) -> list[k.Effect]:
        self.foreseen = foresee.contributors
        return super()._foresee(foresee)

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        if commit.kind == "update" and self.foreseen:
            commit, self.foreseen = msgspec.structs.replace(commit, contributors=self.foreseen), ()
        return super()._commit(commit)


class CombinesAhead(Shard):
    """Takes what was foreseen of one clock for the sum of the next."""

    def _run(self, task: k.Task) -> list[k.Effect]:
        if isinstance(task, k.Combine):
            task = k.Combine(tuple(_a_clock_later(item) for item in task.contributors))
        return super()._run(task)


def _a_clock_later(item: Weighted) -> Weighted:
    who = item.contributor
    return msgspec.structs.replace(item, contributor=msgspec.structs.replace(who, clock=who.clock + 1))


class CompletesTooSoon(Shard):
    """Tells the coordinator that a contribution is complete when its first block is there."""

    def _completed(self, who: Contributor) -> list[k.Effect]:
        if who in self.awaited and self.staged.get(who):
            self.awaited[who] = 1
        return super()._completed(who)


class KeepsOldEntries(Shard):
    """Applies what an older coordinator left, though the new one may have put something else in its place."""

    def _advance(self) -> list[k.Effect]:
        self.pending = {
            seq: msgspec.structs.replace(commit, epoch=self.epoch) for seq, commit in self.pending.items()
        }
        return super()._advance()


class ForgetsFactors(Shard):
    """Tells a new coordinator of the entries it has applied, but not with which factors."""

    def _recover(self, epoch: int) -> list[k.Effect]:
        return [
            k.Send(effect.to, msgspec.structs.replace(effect.message, factors=()))
            if isinstance(effect, k.Send) and isinstance(effect.message, m.Recovered)
            else effect
            for effect in super()._recover(epoch)
        ]


class ForgetsItsAccounts(Shard):
    """Tells a new coordinator nothing of the samples that are accounted for."""

    def _recover(self, epoch: int) -> list[k.Effect]:
        self.accounts.spans.clear()
        return super()._recover(epoch)


class ServesForEver(Shard):
    """Does not mind a coordinator that says nothing."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.silence.since = None
        return super()._tick(now)


# --- sessions -----------------------------------------------------------------------------------


class TrustsTheFallen(Session):
    """Goes on as the last coordinator promised, though the new one may know nothing of it."""

    def _ask_again(self, now: int) -> None:
        if self.released is None and self.granted is None:
            super()._ask_again(now)


class ReadyTooSoon(Session):
    """Makes its contribution ready without waiting for the servers' word."""

    def _make_ready(self, now: int) -> list[k.Effect]:
        for courier in self.couriers:
            courier.unacknowledged.clear()
        return super()._make_ready(now)


class MixesVersions(Arrival):
    """Counts arrived blocks whatever version they are of."""

    def expect(self, version: int) -> None:
        arrived = self.arrived
        super().expect(version)
        self.arrived = arrived


class ReadsInPlace(Session):
    """Computes on the servers' memory under every policy."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        effects = super().step(event, now)
        self.still = True
        return effects


class ClaimsWhole(Session):
    """Spares near servers the word of what it pushed, though it did not push everything."""

    def _flush(self, now: int) -> list[k.Effect]:
        effects = super()._flush(now)
        self.whole = self.clock > 0 and bool(self.near)
        return [] if self.whole and len(self.near) == len(self.couriers) else effects


class AsksOnce(Session):
    """Never repeats a request."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.asking.since = now
        return super()._tick(now)


class WaitsForEver(Session):
    """Does not mind a coordinator that says nothing."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.silence.since = None
        return super()._tick(now)


class BlamesOthers(Session):
    """Takes the time that it was stopped itself for the coordinator's silence."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.silence.watch.ticked_at = None
        return super()._tick(now)


# --- coordinators -------------------------------------------------------------------------------


class LooseBound(Coordinator):
    """Lets workers run one clock further ahead than the bound."""

    @property
    def policy(self) -> Policy | None:
        policy = super().policy
        return Bounded(policy.staleness + 1) if isinstance(policy, Bounded) else policy


class SmallQuorum(Coordinator):
    """Rounds the quorum down."""

    @property
    def policy(self) -> Policy | None:
        policy = super().policy
        return RoundedDown(policy.quorum) if isinstance(policy, Sync) else policy


@dataclass(frozen=True)
class RoundedDown(Sync):
    def commit(self, view: View) -> Go | Wait:
        needed = max(1, int(self.quorum * len(view.clocks) * 0.99))
        return Go(tuple(sorted(view.ready))) if len(view.ready) >= needed else Wait("too few are ready")


class CommitsTwice(Coordinator):
    """Takes a repeated Ready for a new one."""

    def _ready(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        if ready.contributor.clock == member.clock - 1 and member.state == COMPUTING and member.clock > 1:
            member.clock -= 1
            self.clock = min(self.clock, member.clock)
        return super()._ready(member, ready, now)


class TrustsTheDead(Coordinator):
    """Takes a message of an earlier incarnation for one of the living worker."""

    def _from_worker(self, source: str, message: m.Message, now: int) -> list[k.Effect]:
        ready = message.ready if isinstance(message, m.Offer) else message
        if isinstance(ready, m.Ready):
            living = self.membership.members.get(ready.contributor.worker)
            if living is not None and living.incarnation > ready.contributor.incarnation:
                return self._ready(living, ready, now)
        return super()._from_worker(source, message, now)


class BuriesTheLiving(Coordinator):
    """Takes the time that it was stopped itself for the servers' silence."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.watch.ticked_at = None
        return super()._tick(now)


class ForgetsToRelease(Coordinator):
    """Does not repeat what it told a worker when the worker asks again."""

    def _ready(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        return super()._ready(member, ready, now) if ready.contributor.clock >= member.clock else []


# --- samples ------------------------------------------------------------------------------------


class GrantsTwice(Ledger):
    """Leaves what it leases on the list of free samples, now and then."""

    def grant(self, worker: int, share: float = 1.0, epoch: int | None = None) -> Lease | None:
        lease = super().grant(worker, share, epoch)
        if lease is not None and lease.identity % 3 == 2:
            self.free.insert(0, lease.spans[0])
        return lease


class LosesSamples(Ledger):
    """Forgets a part of what a commit accounts for."""

    def commit(self, worker: int, identities: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
        return super().commit(worker, identities)[1:]


class BuriesLeases(Ledger):
    """A dead worker's samples are not leased again."""

    def take_back(self, worker: int) -> int:
        free = list(self.free)
        taken = super().take_back(worker)
        self.free = free
        return taken


class TakesOffers(Coordinator):
    """Does not wait for the shards to have what a worker offers."""

    def _offered(self, member: Member, offer: m.Offer) -> list[k.Effect]:
        return self._ready(member, offer.ready, 0)


class TakesOverAlone(Coordinator):
    """Begins to decide without waiting for the workers to say what they hold."""

    def _take_over(self, now: int) -> list[k.Effect]:
        self.recovery.until = now
        return super()._take_over(now)


class DropsWhatFewHave(Coordinator):
    """Takes an entry for one that never happened, unless every shard has it."""

    def _recovered(self, recovered: m.Recovered, now: int) -> list[k.Effect]:
        applied = [answer.version for answer in (*self.recovery.answers.values(), recovered)]
        self.recovery.answers = {
            shard: msgspec.structs.replace(answer, version=min(applied), entries=())
            for shard, answer in self.recovery.answers.items()
        }
        return super()._recovered(msgspec.structs.replace(recovered, version=min(applied), entries=()), now)


class DealsAsAsked(Dispatch):
    """Deals samples in the order in which requests arrive."""

    def next_answers(self, members: Sequence[Member], lockstep: bool, clock: int) -> list[tuple[Member, Lease | None]]:
        return super().next_answers(members, False, clock)


@dataclass
class WithLedger(Dispatch):
    """A dispatch that keeps its samples in another ledger."""

    kind: type[Ledger] = Ledger

    def open(self, dataset: Dataset) -> str:
        self.ledger = self.ledger or self.kind(dataset)
        return super().open(dataset)


def _ledger(kind: type[Ledger]) -> Machines:
    return Machines(coordinator=lambda job, **facts: Coordinator(job, dispatch=WithLedger(kind=kind), **facts))


PLANTS = (
    Plant("a shard has no duplicate check", "Ordered", Machines(shard=AppliesTwice)),
    Plant("a shard applies commits out of order", "Ordered", Machines(shard=AppliesOutOfOrder)),
    Plant("a shard ignores fences", "Fenced", Machines(shard=IgnoresFences)),
    Plant("a shard ignores epochs", "Fenced", Machines(shard=IgnoresEpochs)),
    Plant("a shard frees too early", "Memory", Machines(shard=FreesTooEarly)),
    Plant("a shard never frees", "Memory", Machines(shard=NeverFrees)),
    Plant("a shard applies what was foreseen", "Atomic", Machines(shard=TrustsForesight)),
    Plant("a shard uses the sum of another clock", "Ordered", Machines(shard=CombinesAhead)),
    Plant("a shard serves any version", "Ordered", Machines(shard=ServesAnyVersion)),
    Plant("a shard acknowledges what is not staged", "Atomic", Machines(shard=AcknowledgesUnstaged)),
    Plant("a shard says that a contribution is complete too soon", "Atomic", Machines(shard=CompletesTooSoon)),
    Plant("an offer is taken for a contribution that is ready", "Quorum", Machines(coordinator=TakesOffers)),
    Plant("a contribution is committed before it is staged", "Atomic", Machines(session=ReadyTooSoon)),
    Plant(
        "a worker goes on at mixed versions",
        "Ordered",
        Machines(session=lambda limits: Session(limits, arrival=MixesVersions())),
    ),
    Plant("a worker computes on parameters that change", "Still", Machines(session=ReadsInPlace)),
    Plant("a worker claims a contribution to be whole that is not", "Atomic", Machines(session=ClaimsWhole)),
    Plant("a worker asks only once", "Progress", Machines(session=AsksOnce)),
    Plant("the staleness bound is wrong", "Bounded", Machines(coordinator=LooseBound)),
    Plant("the quorum is counted wrong", "Quorum", Machines(coordinator=SmallQuorum)),
    Plant("a repeated Ready is committed again", "Exactly once", Machines(coordinator=CommitsTwice)),
    Plant("the word of the dead counts", "Fenced", Machines(coordinator=TrustsTheDead)),
    Plant("a shard keeps what an older coordinator left", "Atomic", Machines(shard=KeepsOldEntries)),
    Plant("a shard does not tell factors to a new coordinator", "Progress", Machines(shard=ForgetsFactors)),
    Plant("a shard forgets which samples are accounted for", "Accounted", Machines(shard=ForgetsItsAccounts)),
    Plant("a worker trusts the word of a coordinator that fell", "Exactly once", Machines(session=TrustsTheFallen)),
    Plant("a new coordinator does not wait for the workers", "Progress", Machines(coordinator=TakesOverAlone)),
    Plant("a new coordinator drops half-spread entries", "Atomic", Machines(coordinator=DropsWhatFewHave)),
    Plant("a worker waits for a silent coordinator", "Progress", Machines(session=WaitsForEver)),
    Plant("a server waits for a silent coordinator", "Progress", Machines(shard=ServesForEver)),
    Plant("a worker that was stopped blames the coordinator", "Progress", Machines(session=BlamesOthers)),
    Plant("a coordinator that was stopped blames the servers", "Progress", Machines(coordinator=BuriesTheLiving)),
    Plant("a lost release is not repeated", "Progress", Machines(coordinator=ForgetsToRelease)),
    Plant("a lease is granted twice", "Accounted", _ledger(GrantsTwice)),
    Plant("a lease is lost", "Accounted", _ledger(LosesSamples)),
    Plant("a dead worker's samples are not leased again", "Accounted", _ledger(BuriesLeases)),
    Plant(
        "samples are dealt in order of arrival",
        "Deterministic",
        Machines(coordinator=lambda job, **facts: Coordinator(job, dispatch=DealsAsAsked(), **facts)),
    ),
)
