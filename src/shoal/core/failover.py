"""Failover: what becomes of a shard when one of its servers is lost, and how another takes the free place.

What it promises: as long as one server has all of a shard, the job goes on, with every commit that
anyone was told of; a server that comes gets what it lacks while training goes on, and leads only once
it has all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.config import Job
from shoal.core import machine as k
from shoal.core.commit_log import CommitLog
from shoal.core.formation import Formation
from shoal.core.membership import Membership, Server
from shoal.core.offers import Offers
from shoal.core.proposal import Proposals
from shoal.core.replicas import Replicas
from shoal.core.saving import Savings
from shoal.vocabulary import server_name, worker_name
from shoal.wire import messages as m

VERSIONS_COMPARED = 64  # of which checksums are kept, for a replica that lags


@dataclass
class Failover:
    """Acts on the placement; the coordinator goes on deciding afterwards."""

    job: Job
    membership: Membership
    replicas: Replicas
    formation: Formation
    log: CommitLog
    proposals: Proposals
    offers: Offers
    savings: Savings
    told_at: int = 0

    def came(self, index: int) -> list[k.Effect]:
        """A server without a part in the job: it is to hold a shard that has too few replicas, if there is one."""
        server = self.membership.servers[index]
        shard = self.replicas.vacancy(server, self.membership.servers.values())
        if shard < 0 or self.formation.spec is None:
            return []
        self.replicas.creating[index] = shard
        return [k.Send(server_name(index), self.formation.creation(shard, fresh=False))]

    def create_again(self, now: int) -> list[k.Effect]:
        """Repeat now and then what servers were told that have yet to make room for a shard."""
        if now - self.told_at < self.job.limits.resend_ms:
            return []
        self.told_at = now
        return [
            k.Send(server_name(index), self.formation.creation(shard, fresh=False))
            for index, shard in self.replicas.creating.items()
            if not self.membership.servers[index].created
        ]

    def created(self, index: int) -> list[k.Effect]:
        """It has room for its shard."""
        if index not in self.replicas.creating:
            return []
        self.membership.servers[index].created = True
        return self.join_created()

    def join_created(self) -> list[k.Effect]:
        """Who has room for its shard follows the log from here on, and is filled by the primary.

        Not while some server has yet to apply an update: the sum of that one does not lie there.
        """
        if not self.replicas.creating or self.log.updated > self.log.stable:
            return []
        effects: list[k.Effect] = []
        joining = [index for index in self.replicas.creating if self.membership.servers[index].created]
        for index in joining:
            self.replicas.join(index)
            effects += self.log.follow(index)
            self.proposals.drop()  # this one must hold the sum, too
        return [*self.announce(), *effects] if joining else []

    def whole(self, index: int) -> list[k.Effect]:
        """It has all of its shard."""
        if not self.replicas.whole(index):
            return []
        done = f"server {index} is a full replica of shard {self.replicas.shard(index)} at version {self.log.version}"
        return [k.Log(done), *self.announce(), *self._retire()]

    def drain(self, source: str, what: str) -> list[k.Effect]:
        """Let a server, or all of a host, go as soon as others have all that they have."""
        known = self.membership.servers
        chosen = [index for index, server in sorted(known.items()) if what in (server_name(index), server.host)]
        error = ""
        if not self.replicas.replicated:
            error = f"job {self.job.name} has no replicas (--replicas): nobody could take over from a server"
        elif not chosen:
            hosts = ", ".join(sorted({server.host for server in known.values()}))
            error = f"no server or host is named {what!r}; there are {', '.join(map(server_name, known))} on {hosts}"
        if error:
            return [k.Send(source, m.Draining((), error))]
        self.replicas.draining.update(chosen)
        log = k.Log(f"{', '.join(f'server {index}' for index in chosen)} will leave once others have their part")
        return [k.Send(source, m.Draining(tuple(chosen))), log, *self.refill(), *self._retire()]

    def _retire(self) -> list[k.Effect]:
        """Servers that are drained leave."""
        effects: list[k.Effect] = []
        for index in self.replicas.drained():
            server = self.membership.servers.get(index)
            self.replicas.draining.discard(index)
            if server is not None:
                effects += self.lost(server, "it was drained", parted=True)[0]
        return effects

    def lost(self, server: Server, why: str, parted: bool = False) -> tuple[list[k.Effect], str]:
        """The server is gone. Returns what is to be done, and why the job cannot go on, or "". parted: as it was to."""
        shard, led = self.replicas.shard(server.index), self.replicas.leads(server.index)
        del self.membership.servers[server.index]
        self.log.leave(server.index)
        who = f"server {server.index} (process {server.pid} on {server.host})"
        alive = self.replicas.remove(server.index)
        if not alive:
            return [], f"{who} died at version {server.version}: {why}"
        self.proposals.drop()
        reason = "" if parted else f"{who} was taken for dead: {why}"
        effects: list[k.Effect] = [k.Send(server_name(server.index), m.Stop(reason))]
        if shard < 0:
            return [*effects, k.Log(f"{who}, a spare, is gone: {why}")], ""
        if led >= 0:
            effects += [k.Log(f"{who} is gone: {why}; server {self.replicas.primaries[led]} leads shard {led} now")]
            effects += self.savings.lost(led, server.index)
            effects += self.offers.again(led)
        else:
            effects += [k.Log(f"{who} is gone: {why}; shard {shard} goes on without this backup")]
        return [*effects, *self.announce(), *self.refill()], ""

    def refill(self) -> list[k.Effect]:
        """Have spare servers take the places that are free."""
        return [effect for index in sorted(self.membership.servers) for effect in self.came(index)]

    def announce(self) -> list[k.Effect]:
        """Tell everybody who holds what from now on."""
        names = [worker_name(member.worker) for member in self.membership.ordered()]
        names += [server_name(index) for index in sorted(self.membership.servers)]
        placed = self.replicas.placed(self.membership.servers.values())
        return [k.Send(name, placed) for name in names]

    def remind(self, name: str, view: int) -> list[k.Effect]:
        """A node said which placement it knows."""
        if view >= self.replicas.view or self.formation.spec is None:
            return []
        return [k.Send(name, self.replicas.placed(self.membership.servers.values()))]

    def differs(self, applied: m.Applied) -> Server | None:
        """A backup whose blocks are not, to the bit, those of its primary at the same version."""
        chain = self.replicas.chains[self.replicas.shard(applied.server)]
        if not applied.checksum or len(chain) < 2:
            return None
        found = [self.membership.servers[server].checksums for server in chain if server in self.membership.servers]
        mine = self.membership.servers[applied.server].checksums
        mine[applied.seq] = applied.checksum
        if len(mine) > VERSIONS_COMPARED:
            del mine[min(mine)]
        if not all(applied.seq in checksums for checksums in found[:1]):
            return None
        right = found[0][applied.seq]
        wrong = [server for server in chain[1:] if self._checksum(server, applied.seq) not in (None, right)]
        return self.membership.servers[wrong[0]] if wrong else None

    def _checksum(self, server: int, version: int) -> int | None:
        known = self.membership.servers.get(server)
        return None if known is None else known.checksums.get(version)
