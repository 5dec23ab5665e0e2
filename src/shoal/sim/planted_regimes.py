"""Changes of policy that go wrong in one way each."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.core.accounts import Accounts
from shoal.core.coordinator import Coordinator
from shoal.core.membership import PARKED, Member
from shoal.core.regime import Regime
from shoal.core.shard import Shard
from shoal.policy import Policy, from_spec
from shoal.sim.world import Machines
from shoal.vocabulary import Switch


def with_regime(kind: type[Regime]) -> Machines:
    return Machines(coordinator=lambda job, **facts: Coordinator(job, regime=kind(), **facts))


class TakesOverAtOnce(Regime):
    """Lets nobody come to rest."""

    def holds(self, policy: Policy | None) -> bool:
        return False


class ForgetsTheRegime(Regime):
    """A new coordinator takes the declared policy for the one in force."""

    def recover(self, accounts: Accounts) -> None:
        pass


class LeavesClocksApart(Regime):
    """Sends each worker on at its own clock."""

    def level(self, members: Sequence[Member], clock: int) -> tuple[Switch, list[Member]]:
        clocks = {member.worker: member.clock for member in members}
        switch, readers = super().level(members, clock)
        for member in members:
            member.clock = clocks[member.worker]
        return switch, readers


class LeavesOutTheIdle(Regime):
    """Gives those that wait for samples nothing, though what they have changes from here on."""

    def level(self, members: Sequence[Member], clock: int) -> tuple[Switch, list[Member]]:
        switch, readers = super().level(members, clock)
        return switch, [member for member in readers if member.state == PARKED]

    def begin(self, switch: Switch, seq: int) -> None:
        super().begin(switch, 0)


class KeepsThePolicy(Shard):
    """Serves workers by the declared policy, whatever is in force."""

    @property
    def policy(self) -> Policy:
        assert self.spec is not None
        return from_spec(self.spec.policy)
