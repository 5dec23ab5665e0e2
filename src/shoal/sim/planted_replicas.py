"""Replicas, and what the coordinator does about them, wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from shoal.config import Job, Limits
from shoal.core import machine as k
from shoal.core.admission import Admission
from shoal.core.coordinator import Coordinator
from shoal.core.course import Course
from shoal.core.failover import Failover
from shoal.core.membership import Member, Server
from shoal.core.proposal import Proposals
from shoal.core.replica import Replica
from shoal.core.replicas import Replicas
from shoal.core.shard import Shard
from shoal.sim.world import Machines
from shoal.vocabulary import COORDINATOR, Weighted, node_number, server_name
from shoal.wire import messages as m

# --- sums ---------------------------------------------------------------------------------------


class HoldsTooSoon(Replica):
    """A backup says that it holds a sum when the first of its blocks is there."""

    def forwarded(self, forward: m.Forward) -> list[k.Effect]:
        held = k.Send(COORDINATOR, m.Held(self.index, forward.epoch, forward.number))
        return [*super().forwarded(forward), held]


class TakesPartForAll(Replica):
    """A backup takes the first blocks of a sum for the whole of it."""

    def forwarded(self, forward: m.Forward) -> list[k.Effect]:
        return super().forwarded(msgspec.structs.replace(forward, total=len(forward.blocks)))


class LetsAllIn(Shard):
    """A backup lets any sum land where that of the next commit lies."""

    def admits_sum(self, forward: m.Forward) -> bool:
        return self.spec is not None and not self.replica.leads


class SendsAnotherSum(Replica):
    """A primary sends a backup that is back the sum that it holds as the one that it has yet to combine."""

    def regained(self, peer: str, near: bool) -> list[k.Effect]:
        self.filling.again(node_number(peer))
        if self.asked is None or not self.sum or not self.leads:
            return []
        epoch, number, contributors = self.asked.epoch, self.asked.number, self.asked.contributors
        return [k.Forward(to, epoch, number, contributors) for to in self.asked.to if server_name(to) == peer]


class CombinesTooSoon(Replica):
    """A primary does not wait for all that a sum is of."""

    def due(self, complete: Callable[[Weighted, int], bool]) -> m.Prepare | None:
        return super().due(lambda item, count: True)


class ContentWithOne(Proposals):
    """An update is committed as soon as one replica holds its sum."""

    def held(self, held: m.Held) -> bool:
        super().held(held)
        return self.current is not None and held.number == self.current.number


class ProposesTooSoon(Proposals):
    """Does not wait until every server has applied the update before."""

    @property
    def free(self) -> bool:
        return self.current is None


class ProposesForTheDead(Coordinator):
    """Stays with an update though one of its contributors is gone."""

    def _remove(self, member: Member, why: str, now: int, parted: bool = False) -> list[k.Effect]:
        proposal = self.proposals.current
        if proposal is not None:
            self.proposals.current = replace(proposal, workers=())
        effects = super()._remove(member, why, now, parted)
        if proposal is not None:
            self.proposals.current = proposal
        return effects


class HoldsPartsInPlace(Replica):
    """A primary has backups read from a worker's memory what is not complete there."""

    def lie_near(self, asked: m.Prepare) -> bool:
        return self.near.issuperset(server for server in asked.to if server != self.index)


# --- blocks -------------------------------------------------------------------------------------


class TakesAnyVersion(Replica):
    """A new server takes in blocks as they were before an update that it has applied."""

    def take_in(self, updated: int) -> list[k.Effect]:
        fills, self.fills = self.fills, []
        effects: list[k.Effect] = []
        for fill in fills:
            self.fills = [fill]
            effects += super().take_in(min(fill.updated, updated))
        return effects


@dataclass
class TellsOnce(Replica):
    """A primary tells a new server where the log is, and does not say it again when the word was lost."""

    told: set[str] = field(default_factory=set)

    def give(self, version: int, updated: int, knows: m.Recovered, now: int) -> list[k.Effect]:
        effects = super().give(version, updated, knows, now)
        words = [effect for effect in effects if isinstance(effect, k.Send)]
        again = [effect for effect in words if effect.to in self.told]
        self.told.update(effect.to for effect in words)
        return [effect for effect in effects if effect not in again]


class WholeTooSoon(Replica):
    """A new server takes itself for whole when it knows where the log is."""

    @property
    def whole(self) -> bool:
        return self.follows


class LeavesOutTheNew(Failover):
    """Goes on with a proposal that a server which has just joined was not sent."""

    def join_created(self) -> list[k.Effect]:
        proposal = self.proposals.current
        effects = super().join_created()
        self.proposals.current = proposal
        return effects


# --- places -------------------------------------------------------------------------------------


class GivesUp(Replicas):
    """Takes all of a shard's servers for lost with the one that led it."""

    def remove(self, server: int) -> bool:
        shard = self.leads(server)
        alive = super().remove(server)
        if shard >= 0:
            self.chains[shard].clear()
        return alive and shard < 0


class FollowsTheOldest(Replicas):
    """A new coordinator takes the places of the oldest view that any server knows."""

    def recover(self, told: Iterable[m.Recovered], stable: int) -> list[int]:
        answers = list(told)
        views = [answer.placed for answer in answers if answer.placed is not None]
        oldest = min(views, key=lambda placed: placed.view, default=None)
        return super().recover([msgspec.structs.replace(answer, placed=oldest) for answer in answers], stable)


class NeverReminds(Failover):
    """Who did not hear of a placement does not hear of it again."""

    def remind(self, name: str, view: int) -> list[k.Effect]:
        return []


class WaitsForTheLost(Failover):
    """Goes on with a proposal that a server which is gone was to hold."""

    def lost(self, server: Server, why: str, parted: bool = False) -> tuple[list[k.Effect], str]:
        proposal = self.proposals.current
        done = super().lost(server, why, parted)
        self.proposals.current = proposal
        return done


class SeesNoDifference(Failover):
    """Does not compare checksums."""

    def differs(self, applied: m.Applied) -> Server | None:
        return None


# --- machines that have such parts ----------------------------------------------------------------


def with_replica(kind: type[Replica]) -> Machines:
    """Servers of which each is such a replica."""

    def shard(index: int, limits: Limits) -> Shard:
        made = Shard(index, limits)
        made.replica = kind(index, limits)
        return made

    return Machines(shard=shard)


def with_part(kind: type[Admission] | type[Course] | type[Failover] | type[Proposals] | type[Replicas]) -> Machines:
    """A coordinator of which one part is such a one."""

    def coordinator(job: Job, **facts: Any) -> Coordinator:
        made = Coordinator(job, **facts)
        for part in (made.admission, made.course, made.failover, made.proposals, made.replicas):
            if issubclass(kind, type(part)):
                part.__class__ = kind  # others refer to it
        return made

    return Machines(coordinator=coordinator)
