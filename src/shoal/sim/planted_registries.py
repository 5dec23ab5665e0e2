"""Registries, and what coordinators and nodes make of them, wrong in one way each."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.config import Job
from shoal.core import machine as k
from shoal.core.coordinator import Coordinator
from shoal.core.following import Following
from shoal.core.shard import Shard
from shoal.sim.registry import Registry
from shoal.sim.symbols import FORGED
from shoal.wire import messages as m


class RepeatsEpochs(Registry):
    """Gives the next leader the epoch of the last one."""

    def grant(self, now: int) -> int | None:
        before = self.epoch
        granted = super().grant(now)
        self.epoch = before or self.epoch
        return None if granted is None else self.epoch


class TakesFromAnyone(Registry):
    """Keeps what a former leader writes."""

    def takes(self, epoch: int, now: int) -> bool:
        return True


class GoesOn(Coordinator):
    """Acts on when its lease is over: it was not told, and looks at no clock."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        return [] if isinstance(event, k.Leads | k.Deposed) else super().step(event, now)


class TrustsItsLease(Coordinator):
    """Waits to be told that it leads no more: does not look at its own clock first."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        self.leads_until = None
        return super().step(event, now)


def begins_anew(job: Job, **facts: Any) -> Coordinator:
    """A standby that leads takes the job for one that has yet to begin."""
    return Coordinator(job, **{**facts, "recovers": False})


class FollowsBoth(Shard):
    """Does what either of two coordinators says (but for what nobody ever said)."""

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        forged = FORGED in commit.rates
        return super()._commit(commit if forged else msgspec.structs.replace(commit, epoch=self.epoch))

    def _recover(self, epoch: int) -> list[k.Effect]:
        return super()._recover(max(epoch, self.epoch))


class NeverSeeks(Following):
    """Waits for the coordinator that it lost, where that was."""

    def lost(self) -> None:
        """Does not ask the registry."""
