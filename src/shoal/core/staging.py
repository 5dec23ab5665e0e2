"""Staging: which blocks of which contributions are here, waiting for the commit that combines them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.core.accounts import Accounts
from shoal.vocabulary import COORDINATOR, Contributor
from shoal.wire import messages as m


@dataclass
class Staging:
    """Of one server: a block that is staged twice changes nothing."""

    index: int
    staged: dict[Contributor, set[int]] = field(default_factory=dict)
    awaited: dict[Contributor, int] = field(default_factory=dict)  # number of blocks that the coordinator waits for

    def lacks(self, who: Contributor, blocks: Iterable[int]) -> bool:
        """Whether these blocks of its contribution bring anything."""
        return not self.staged.get(who, set()).issuperset(blocks)

    def has(self, who: Contributor, count: int) -> bool:
        """Whether so many of its blocks are here."""
        return len(self.staged.get(who, ())) >= count

    def take(self, who: Contributor, blocks: Iterable[int]) -> None:
        """These blocks are here."""
        self.staged.setdefault(who, set()).update(blocks)

    def expect(self, who: Contributor, count: int) -> list[k.Effect]:
        """The coordinator waits for so many blocks of this contribution."""
        self.awaited[who] = count
        return self.completed(who)

    def completed(self, who: Contributor) -> list[k.Effect]:
        """Tell the coordinator if it waits for this contribution, and all of it is here."""
        if who not in self.awaited or not self.has(who, self.awaited[who]):
            return []
        del self.awaited[who]
        return [k.Send(COORDINATOR, m.Complete(self.index, who))]

    def settle(self, accounts: Accounts) -> tuple[Contributor, ...]:
        """Forget contributions whose fate is sealed; returns those that were staged."""
        settled = tuple(who for who in self.staged if accounts.settled(who))
        for who in settled:
            del self.staged[who]
        for who in [who for who in self.awaited if accounts.settled(who)]:
            del self.awaited[who]
        return settled
