"""Departures: how a member goes, because it left, fell silent, or another process took its place.

What it promises: nothing that its incarnation sends, or has staged, counts from the next entry of the log on; its
samples are free for others; and the ranks of its group, which cannot go on without it, go with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.core.commit_log import CommitLog
from shoal.core.dispatch import Dispatch
from shoal.core.formation import Formation
from shoal.core.membership import COMPUTING, JOINED, Member, Membership
from shoal.core.proposal import Proposals
from shoal.core.saving import Savings
from shoal.core.unit import Units
from shoal.vocabulary import worker_name
from shoal.wire import messages as m


@dataclass
class Departures:
    """Takes members out of everything that knows them. The entry that shuts them out, and what the others do next,
    are the coordinator's.

    last_words: why an incarnation is over, by worker, where there is more to say than that it is.
    """

    job: str
    formation: Formation
    membership: Membership
    units: Units
    dispatch: Dispatch
    log: CommitLog
    proposals: Proposals
    savings: Savings
    last_words: dict[int, tuple[int, str]] = field(default_factory=dict)

    def remove(self, member: Member, why: str, now: int, parted: bool = False) -> list[k.Effect]:
        """The member is gone, and its group with it. parted: it said so."""
        mates = [mate for mate in self.units.of(member) if mate is not member]
        effects = self.expel(member, why, now, parted)
        for mate in mates:
            mate.bereft = bereft(mate, why)
            if not parted or mate.state not in (JOINED, COMPUTING):  # who neither waits nor steps may end in peace
                effects += self.expel(mate, mate.bereft, now)
                if parted:
                    self.membership.buried.pop(mate.worker, None)  # it has not failed: its script may end as it likes
        return effects

    def expel(self, member: Member, why: str, now: int, parted: bool = False) -> list[k.Effect]:
        """Its samples are free, its incarnation is fenced."""
        self.membership.remove(member, now, parted)
        if member.group:
            self.last_words[member.worker] = member.incarnation, why
        self.dispatch.take_back(member)
        self.log.fence(member.worker, member.incarnation)
        proposal = self.proposals.current
        if proposal is not None and member.worker in proposal.workers:
            self.proposals.drop()
        effects: list[k.Effect] = [k.Log(why), *self.savings.gone(member.worker, self.formation.spec)]
        if member.group and not parted:  # whoever lives should hear of it soon
            effects.append(k.Send(worker_name(member.worker), self.fenced(member.worker, member.incarnation)))
        return effects

    def fenced(self, worker: int, incarnation: int) -> m.Fenced:
        """What an incarnation is told that is over."""
        last, why = self.last_words.get(worker, (-1, ""))
        if last != incarnation:
            why = "it was silent for too long or another process took its place. Start it again to join anew"
        reason = f"worker {worker} (incarnation {incarnation}) is no longer a member of job {self.job}: {why}"
        return m.Fenced(worker, incarnation, reason)


def bereft(member: Member, why: str) -> str:
    """Why a rank of a group cannot go on, and what is to be done."""
    others = ", ".join(str(worker) for worker, _ in member.group)
    return f"it is of the group of workers {others}, all of which have to be started again: {why}"
