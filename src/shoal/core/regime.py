"""The regime: which policy is in force, since when, and which one is to follow it.

A policy changes by an entry of the log: everybody changes at one version, and a coordinator that takes over knows it.
Where clocks get or lose a common meaning, or parameters begin to change while workers compute on them, workers come to
rest first: what they have pushed is committed under the old policy, and none is released before the entry, which
sends all of them on at one clock with whole parameters. Nothing is dropped for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core.accounts import Accounts
from shoal.core.membership import COMPUTING, IDLE, PARKED, READY, Member
from shoal.errors import ShoalError
from shoal.policy import Policy, from_spec, harm, in_words, rests
from shoal.vocabulary import PolicySpec, Switch, TableSpec
from shoal.wire import messages as m


@dataclass
class Regime:
    """policy: None: the one that the table declares. since: the entry that brought it. wanted: what is to follow."""

    policy: Policy | None = None
    since: int = 0
    wanted: PolicySpec | None = None

    def recover(self, accounts: Accounts) -> None:
        """Go on where a coordinator of an older epoch was. What only it had been asked for is forgotten."""
        if accounts.switch is not None:
            self.policy, self.since = from_spec(accounts.switch.policy), accounts.switched

    def want(self, wanted: PolicySpec, policy: Policy) -> str:
        """Somebody wants another policy; policy: in force. Returns what is wrong with it."""
        try:
            from_spec(wanted)
        except ShoalError as error:
            return str(error)
        self.wanted = None if wanted == policy.spec else wanted
        return ""

    def answer(self, spec: TableSpec, policy: Policy) -> m.PolicySet:
        """What is told to whoever asks which policy is in force."""
        wanted = from_spec(self.wanted) if self.wanted is not None else policy
        return m.PolicySet(policy.spec, self.since, self.wanted, harm(wanted, spec.rule))

    def holds(self, policy: Policy | None) -> bool:
        """Whether nobody is to be released, so that all come to rest. policy: in force."""
        return policy is not None and self.wanted is not None and rests(policy, from_spec(self.wanted))

    def restless(self, policy: Policy, members: Sequence[Member]) -> list[int]:
        """Workers that have yet to come to rest. Under a lockstep policy who is ready does, too: it goes on with what
        it is ready with."""
        moving = (COMPUTING,) if policy.lockstep else (COMPUTING, READY)
        return [member.worker for member in members if member.state in moving]

    def awaited(self, restless: Sequence[int]) -> str:
        """What the job waits for, in words."""
        assert self.wanted is not None
        return f"{in_words(self.wanted)} takes over once workers {list(restless)} have finished their clocks"

    def level(self, members: Sequence[Member], clock: int) -> tuple[Switch, list[Member]]:
        """All are at rest: let them go on at one clock. clock: the open one. Returns who is to be released, too."""
        assert self.wanted is not None
        parked = [member for member in members if member.state == PARKED]
        clock = max([clock, *(member.clock for member in parked)])
        for member in parked:
            member.clock = clock
        # Who waits for samples computes on what it has unless it gets something: that may change from here on.
        return Switch(self.wanted, clock), [member for member in members if member.state in (PARKED, IDLE)]

    def begin(self, switch: Switch, seq: int) -> None:
        """The entry `seq` brings the policy that was wanted."""
        self.policy, self.since, self.wanted = from_spec(switch.policy), seq, None
