"""Coordinators that are wrong in one way each."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from shoal.core import machine as k
from shoal.core.ages import Ages
from shoal.core.coordinator import Coordinator
from shoal.wire import messages as m


class PacesByTheSlowest(Coordinator):
    """Tells workers their speed by the slowest one's, not the fastest's."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        effects = super().step(event, now)
        slowest = min((member.pace(self.membership.ordered()) for member in self.membership.ordered()), default=1.0)
        return [self._said(effect, slowest) for effect in effects]

    @staticmethod
    def _said(effect: k.Effect, slowest: float) -> k.Effect:
        match effect:
            case k.Send(message=m.Released(pace=pace) as released):
                return replace(effect, message=msgspec.structs.replace(released, pace=pace / slowest))
        return effect


class RecallsTheOneBefore(Coordinator):
    """Has workers save what they had lost one contribution before that of the snapshot."""

    def _snapshot(self, request: m.SnapshotRequest, now: int) -> list[k.Effect]:
        effects = super()._snapshot(request, now)
        return [_of_the_clock_before(effect) for effect in effects]


def _of_the_clock_before(effect: k.Effect) -> k.Effect:
    if not isinstance(effect, k.Send) or not isinstance(effect.message, m.Recall):
        return effect
    incarnation, clock = effect.message.used
    return replace(effect, message=msgspec.structs.replace(effect.message, used=(incarnation, clock - 1)))


class EveryEntryAges(Ages):
    """Takes every entry for an update."""

    def of(self, version: int) -> int:
        return self.entries - version if version else 0

    entries = 0

    def add(self, commit: m.Commit) -> None:
        super().add(commit)
        self.entries = commit.seq


class AgesByEntries(Coordinator):
    """Counts the age of contributions in entries, of which some change nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log.ages = EveryEntryAges()


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


class TakesOffers(Coordinator):
    """Does not wait for the shards to have what a worker offers."""

    def _from_worker(self, source: str, message: m.Message, now: int) -> list[k.Effect]:
        return super()._from_worker(source, message.ready if isinstance(message, m.Offer) else message, now)


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
