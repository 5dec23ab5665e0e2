"""Foresight: which contributions the next commit will most likely combine first, and with which weights.

Contributions combine in worker order, so those of the first workers can be added up while a later
worker is still awaited. Shares are known only once everybody is ready: whoever is not is taken to bring
the samples that it holds, or as many as last time. A wrong guess costs the work, never a bit: what
does not begin as the commit does is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from shoal.core import machine as k
from shoal.core.commit_log import usable
from shoal.core.membership import READY, Member
from shoal.core.unit import weighed
from shoal.vocabulary import Weighted, server_name
from shoal.wire import messages as m

CONTRIBUTIONS_MIN = 2  # one alone is read as quickly where it lies


@dataclass
class Foresight:
    """What the shards were told last."""

    told: tuple[Weighted, ...] = field(default=())

    def tell(self, members: Sequence[Member], reduction: str, epoch: int, primaries: Sequence[int]) -> list[k.Effect]:
        """Let the shards combine what they have, if that is more than last time. members: all that are busy, in
        order, under a policy that commits them together."""
        foreseen = expected(members, reduction)
        if len(foreseen) < CONTRIBUTIONS_MIN or foreseen == self.told[: len(foreseen)]:
            return []
        self.told = foreseen
        ready = {member.ready.contributor: member.ready.blocks for member in members if member.ready is not None}
        blocks = [ready[item.contributor] for item in foreseen]
        return [
            k.Send(server_name(primary), m.Foresee(epoch, foreseen, tuple(counts[shard] for counts in blocks)))
            for shard, primary in enumerate(primaries)
        ]


def expected(members: Sequence[Member], reduction: str) -> tuple[Weighted, ...]:
    """The first members' contributions, up to the first one that is not ready."""
    alone = takewhile(lambda member: member.state == READY and not member.group, members)  # all of a group come at once
    first = [([member.ready], 1.0) for member in alone if member.ready]
    counted = {unit[0].contributor for unit, _ in first}
    others = [member.ready for member in members if member.ready and member.ready.contributor not in counted]
    awaited = sum(
        sum(lease.samples for lease in member.leases) or member.contributed
        for member in members
        if member.state != READY
    )
    return weighed(first, reduction, awaited + sum(ready.samples for ready in others if usable([ready])))
