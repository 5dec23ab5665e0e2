"""Replicas: which servers hold which shard, who leads each, and who could take a free place.

What it promises: the first of a shard's chain is its primary and has all of it; a server that is gone
never comes back under its number; every change is a new view, which nodes of older views learn of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shoal.core.membership import Server
from shoal.wire import messages as m


@dataclass
class Replicas:
    """chains: by shard its servers, the primary first."""

    shards: int
    copies: int  # of each shard that there should be
    view: int = 1
    chains: list[list[int]] = field(default_factory=list)
    filling: set[int] = field(default_factory=set)  # backups that do not have all of their shard yet
    creating: dict[int, int] = field(default_factory=dict)  # server -> shard that it makes room for
    draining: set[int] = field(default_factory=set)  # leave once others have all that they have
    gone: set[int] = field(default_factory=set)
    arranged: bool = False  # over hosts

    def __post_init__(self) -> None:
        if not self.chains:
            self.chains = [list(range(shard, self.first, self.shards)) for shard in range(self.shards)]

    @property
    def first(self) -> int:
        """How many servers a job begins with: those below this number have their places from the start."""
        return self.shards * self.copies

    @property
    def replicated(self) -> bool:
        return self.copies > 1

    @property
    def servers(self) -> list[int]:
        """All that have a place."""
        return sorted(server for chain in self.chains for server in chain)

    @property
    def primaries(self) -> list[int]:
        """By shard."""
        return [chain[0] for chain in self.chains]

    def shard(self, server: int) -> int:
        """The shard that it holds; -1: none."""
        return next((shard for shard, chain in enumerate(self.chains) if server in chain), -1)

    def leads(self, server: int) -> int:
        """The shard whose primary it is; -1: none."""
        return next((shard for shard, chain in enumerate(self.chains) if chain and chain[0] == server), -1)

    def arrange(self, servers: Mapping[int, Server]) -> None:
        """Before the job begins: let the replicas of a shard be on different hosts, as far as there are any."""
        if self.arranged or any(server not in servers for server in range(self.first)):
            return
        self.arranged = True
        free = list(range(self.shards, self.first))
        self.chains = [[shard] for shard in range(self.shards)]
        for _ in range(1, self.copies):
            for chain in self.chains:
                hosts = {servers[server].host for server in chain}
                chosen = next((server for server in free if servers[server].host not in hosts), free[0])
                free.remove(chosen)
                chain.append(chosen)

    def remove(self, server: int) -> bool:
        """The server is gone; returns whether its shard still has a server with all of it."""
        self.gone.add(server)
        self.draining.discard(server)
        self.creating.pop(server, None)
        shard = self.shard(server)
        if shard < 0:
            return True
        self.filling.discard(server)
        chain = self.chains[shard]
        chain.remove(server)
        chain.sort(key=lambda other: other in self.filling)  # who has all of it goes first, otherwise in order
        self.view += 1
        return bool(chain) and chain[0] not in self.filling

    def vacancy(self, server: Server, servers: Iterable[Server]) -> int:
        """The shard that most needs this server as a backup; -1: none does.

        Of those that have as few servers, one with none on its host goes before; never a second in one process.
        """
        placed = server.index in self.creating or self.shard(server.index) >= 0
        if placed or server.index in self.draining or not self.replicated:
            return -1
        known = {item.index: item for item in servers}
        found: list[tuple[int, bool, int]] = []
        for shard, chain in enumerate(self.chains):
            coming = [other for other, its in self.creating.items() if its == shard]
            holders = [known[other] for other in (*chain, *coming) if other in known]
            same = any(holder.process == server.process for holder in holders)
            count = len(coming) + sum(other not in self.draining for other in chain)
            if count < self.copies and not same:
                near = any(holder.host == server.host for holder in holders)
                found.append((count, near, shard))
        return min(found)[2] if found else -1

    def join(self, server: int) -> None:
        """It has room for its shard: from here on it follows the log, and is filled."""
        self.chains[self.creating.pop(server)].append(server)
        self.filling.add(server)
        self.view += 1

    def whole(self, server: int) -> bool:
        """It has all of its shard; returns whether that is news."""
        if server not in self.filling:
            return False
        self.filling.remove(server)
        shard = self.shard(server)
        self.chains[shard].sort(key=lambda other: other in self.filling)
        self.view += 1
        return True

    def drained(self) -> list[int]:
        """Servers that may leave now: as many others as there should be have all that they have."""
        free: list[int] = []
        for server in sorted(self.draining):
            shard = self.shard(server)
            chain = self.chains[shard] if shard >= 0 else []
            staying = [other for other in chain if other not in self.draining and other not in self.filling]
            if shard < 0 or len(staying) >= self.copies:
                free.append(server)
        return free

    def placed(self, servers: Iterable[Server]) -> m.Placed:
        """What everybody is told."""
        addresses = tuple((item.index, item.address) for item in servers if self.shard(item.index) >= 0)
        return m.Placed(self.view, tuple(map(tuple, self.chains)), tuple(sorted(self.filling)), addresses)

    def recover(self, told: Iterable[m.Recovered], stable: int) -> list[int]:
        """Take the places that the newest of these views has; returns servers that hold what is out of date.

        Who is placed and did not tell is gone, and so is who has not applied the entries up to `stable`, which all
        that had a place have.
        """
        following = {answer.server: answer for answer in told if answer.spec is not None}
        answers = {server: answer for server, answer in following.items() if answer.version >= stable}
        views = [answer.placed for answer in following.values() if answer.placed is not None]
        chains, self.arranged = self.chains, True
        if views:
            newest = max(views, key=lambda placed: placed.view)
            self.view, chains = newest.view + 1, [list(chain) for chain in newest.chains]
        self.chains = [[server for server in chain if server in answers] for chain in chains]
        self.filling = {server for server in self.servers if not answers[server].whole}
        for chain in self.chains:
            chain.sort(key=lambda server: server in self.filling)
        return [server for server in following if self.shard(server) < 0]

    @property
    def lost(self) -> list[int]:
        """Shards that no server has all of."""
        return [shard for shard, chain in enumerate(self.chains) if not chain or chain[0] in self.filling]
