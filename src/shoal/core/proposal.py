"""Proposals: an update on its way to every replica of every shard, before it enters the log.

Each shard's primary combines the contributions and forwards their sum to its backups. Only when every
replica holds it is the update committed: from then on no death of a server, or of a worker, can leave it
half done. Until then it is nothing, and dropped when one of its contributors or servers is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core import machine as k
from shoal.core.commit_log import CommitLog
from shoal.core.membership import Member
from shoal.core.replicas import Replicas
from shoal.vocabulary import Weighted, server_name
from shoal.wire import messages as m


@dataclass(frozen=True)
class Proposal:
    """One update. workers: whose contributions it settles, also those without a gradient to use."""

    number: int
    workers: tuple[int, ...]
    weights: tuple[Weighted, ...]
    blocks: tuple[tuple[int, ...], ...]  # of each of them, by shard
    lacking: set[int]  # servers that do not hold its sum


@dataclass
class Proposals:
    """At most one at a time, and none before every server has applied the update before it: until then the memory
    in which its sum will lie is in use."""

    epoch: int
    log: CommitLog
    replicas: Replicas
    number: int = 0
    current: Proposal | None = None
    sent_at: int = 0

    @property
    def free(self) -> bool:
        """Whether another one may begin."""
        return self.current is None and self.log.updated <= self.log.stable

    def begin(self, members: Sequence[Member], weights: tuple[Weighted, ...], now: int) -> list[k.Effect]:
        """Have all replicas come to hold the sum of these contributions."""
        self.number += 1
        ready = {member.ready.contributor: member.ready.blocks for member in members if member.ready is not None}
        blocks = tuple(ready[item.contributor] for item in weights)
        workers = tuple(member.worker for member in members)
        lacking = set(self.log.servers)
        self.current = Proposal(self.number, workers, weights, blocks, lacking)
        return self._send(now)

    def take(self) -> Proposal:
        """The one that every replica holds: it is under way no more."""
        assert self.current is not None
        proposal, self.current = self.current, None
        return proposal

    def drop(self) -> None:
        """Nothing comes of it."""
        self.current = None

    def held(self, held: m.Held) -> bool:
        """A server holds the sum; returns whether that was the last one."""
        proposal = self.current
        if proposal is None or (held.epoch, held.number) != (self.epoch, proposal.number):
            return False
        proposal.lacking.discard(held.server)
        return not proposal.lacking

    def resend(self, now: int, resend_ms: int) -> list[k.Effect]:
        """What may have been lost, once no answer came for `resend_ms`."""
        return self._send(now) if self.current is not None and now - self.sent_at >= resend_ms else []

    def _send(self, now: int) -> list[k.Effect]:
        assert self.current is not None
        self.sent_at = now
        proposal, effects = self.current, list[k.Effect]()
        for shard, chain in enumerate(self.replicas.chains):
            lacking = tuple(server for server in chain if server in proposal.lacking)
            counts = tuple(blocks[shard] for blocks in proposal.blocks)
            if lacking:
                facts = (self.epoch, proposal.number, proposal.weights, counts, lacking)
                effects.append(k.Send(server_name(chain[0]), m.Prepare(*facts)))
        return effects
