"""Offers: contributions that will be ready once every shard says that all of it is staged.

From far away a worker does not wait for the shards' word: they give it to the coordinator, and the step is a round trip
shorter. A primary that takes another's place is asked anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.core.membership import COMPUTING, Member, Membership
from shoal.core.replicas import Replicas
from shoal.vocabulary import Contributor, server_name
from shoal.wire import messages as m


@dataclass
class Offered:
    """unstaged: shards that have not said that they have all of it."""

    ready: m.Ready
    unstaged: set[int]


@dataclass
class Offers:
    """The last one of each worker, by its number."""

    membership: Membership
    replicas: Replicas
    open: dict[int, Offered] = field(default_factory=dict)

    def offered(self, member: Member, ready: m.Ready) -> list[k.Effect]:
        """Let the shards say when it is ready."""
        if not _due(member, ready.contributor):
            return []
        unstaged = {shard for shard, count in enumerate(ready.blocks[: len(self.replicas.chains)]) if count}
        self.open[member.worker] = Offered(ready, unstaged)
        return [self._await(ready, shard) for shard in sorted(unstaged)]

    def complete(self, who: Contributor, shard: int) -> m.Ready | None:
        """A shard has all of this contribution; returns what is ready with that."""
        offer, member = self.open.get(who.worker), self.membership.find(who.worker, who.incarnation)
        if offer is None or member is None or offer.ready.contributor != who or not _due(member, who):
            return None
        offer.unstaged.discard(shard)
        return None if offer.unstaged else offer.ready

    def again(self, shard: int) -> list[k.Effect]:
        """What the lost primary of this shard was to say, the new one is asked."""
        return [
            self._await(offer.ready, shard)
            for member in self.membership.ordered()
            if (offer := self.open.get(member.worker)) is not None and _due(member, offer.ready.contributor)
            if shard in offer.unstaged
        ]

    def _await(self, ready: m.Ready, shard: int) -> k.Effect:
        return k.Send(server_name(self.replicas.primaries[shard]), m.Await(ready.contributor, ready.blocks[shard]))


def _due(member: Member, who: Contributor) -> bool:
    """Whether this is what the member works on."""
    return member.state == COMPUTING and (member.incarnation, member.clock) == (who.incarnation, who.clock)
