"""How workers come in, and how a job goes on, wrong in one way each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoal.core import machine as k
from shoal.core.admission import Admission
from shoal.core.course import Course
from shoal.core.membership import COMPUTING, Member
from shoal.policy import Bounded, Decoupled, Go, Policy, Sync, View, Wait
from shoal.wire import messages as m


class LooseBound(Course):
    """Lets workers run one clock further ahead than the bound."""

    @property
    def policy(self) -> Policy | None:
        policy = super().policy
        return replace(policy, staleness=policy.staleness + 1) if isinstance(policy, Bounded) else policy


class TakesTooOld(Course):
    """Commits contributions one update older than the bound."""

    def _factor(self, unit: list[m.Ready]) -> float | None:
        age = max(self.log.ages.of(ready.version) for ready in unit)
        return super()._factor(unit) or (self.policy.weigh(age - 1) if self.policy and age else None)


class DropsQuietly(Course):
    """Tells workers that what it dropped is committed."""

    def _readers(self) -> list[Member]:
        readers = super()._readers()
        for member in readers:
            member.dropped = False
        return readers


class GivesNoGrace(Course):
    """Goes on as soon as enough are ready."""

    @property
    def policy(self) -> Policy | None:
        policy = super().policy
        return replace(policy, grace=0.0) if isinstance(policy, Sync | Decoupled) else policy


class SmallQuorum(Course):
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


class CommitsTwice(Course):
    """Takes a repeated Ready for a new one."""

    def ready(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        if ready.contributor.clock == member.clock - 1 and member.state == COMPUTING and member.clock > 1:
            member.clock -= 1
            self.clock = min(self.clock, member.clock)
        return super().ready(member, ready, now)


class ForgetsToRelease(Course):
    """Does not repeat what it told a worker when the worker asks again."""

    def ready(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        return super().ready(member, ready, now) if ready.contributor.clock >= member.clock else []


class CommitsWhatItProposed(Course):
    """Does not ask the policy again whether it wants the update that every replica holds by now."""

    def held(self, now: int) -> list[k.Effect]:
        proposal = self.proposals.take()
        members = [self.membership.members.get(worker) for worker in proposal.workers]
        contributors = [member for member in members if member is not None and member.ready is not None]
        return self._commit(contributors, now) + self.decide(now)


class LetsGoTooSoon(Course):
    """Lets a worker compute its next gradient while a replica reads the last one where it lies."""

    def _spreads(self, update: int) -> bool:
        return False


class ForgetsWhatWasUsed(Admission):
    """Tells a worker that comes back that none of its contributions is in the log."""

    def _answer(self, member: Member, now: int) -> list[k.Effect]:
        self.log.used.pop(member.worker, None)
        return super()._answer(member, now)
