"""The couriers of one worker: one for each shard, on the way to the server that leads it, wherever that is by now.

What it promises: whoever comes to lead a shard is given all that the one before was given of a contribution that is
not committed; and a server that is to share memory with the worker, and has not said that it does, gives it nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.backoff import Backoff
from shoal.core.courier import Courier
from shoal.placement import cut, owned
from shoal.vocabulary import ITEM_BYTES, Contributor, TableSpec, server_name
from shoal.wire import messages as m


@dataclass
class Couriers:
    """By shard, once the table exists."""

    limits: Limits
    placed: m.Placed | None = None  # which servers hold which shard
    moving: set[int] = field(default_factory=set)  # shards that another server leads now, until it is reached
    near: set[int] = field(default_factory=set)  # shards whose servers share memory
    unattached: set[int] = field(default_factory=set)  # those of them that have not answered yet
    whole: bool = False  # near servers were sent no word of this contribution: all of it lies where they look
    every: list[Courier] = field(default_factory=list)
    of: dict[int, Courier] = field(default_factory=dict)  # by block
    attaching: Backoff = field(init=False)

    def __post_init__(self) -> None:
        self.attaching = Backoff(self.limits.resend_ms)

    # --- servers ------------------------------------------------------------------------------

    @property
    def servers(self) -> tuple[int, ...]:
        """By shard the server that leads it."""
        return () if self.placed is None else self.placed.primaries

    def shard_of(self, server: int) -> int:
        """The shard that this server leads, as far as this worker knows; -1: none."""
        return self.servers.index(server) if server in self.servers else -1

    def gives(self, shard: int) -> bool:
        """Whether parameters of this shard can be taken: its server leads it, and shares its memory if it is to."""
        return shard >= 0 and shard not in self.moving and shard not in self.unattached

    def begin(self, placed: m.Placed) -> list[k.Effect]:
        """Reach every primary."""
        self.placed = placed
        return [k.Dial(tuple((server, placed.address(server)) for server in placed.primaries))]

    def move(self, placed: m.Placed) -> list[k.Effect]:
        """Other servers lead some shards from here on: they are given what is staged and not committed."""
        if self.placed is None or placed.view <= self.placed.view:
            return []
        before, dial = self.servers, self.begin(placed)
        for shard, (one, other) in enumerate(zip(before, self.servers, strict=True)):
            if one != other:
                self.moving.add(shard)
                if self.every:
                    self.every[shard].move(other)
        return dial if before != self.servers else []

    def reached(self, shard: int, near: bool, pushed: bool, who: Contributor, now: int) -> list[k.Effect]:
        """The connection to the server that leads this shard is there, perhaps again: repeat what may be lost.

        pushed: all of the contribution was handed over.
        """
        if not 0 <= shard < len(self.every):
            self.moving.discard(shard)
            return []
        if shard not in self.moving:
            return self.every[shard].resend(who)
        self.moving.discard(shard)
        courier = self.every[shard]
        was_near, courier.near = courier.near, near and bool(self.near)
        if courier.near:
            self.near.add(shard)
            self.unattached.add(shard)
            self.attaching.start(now)
            return [self._attach(shard, who)]
        self.near.discard(shard)
        self.unattached.discard(shard)
        if was_near and self.whole and pushed:
            courier.carry_whole()
        return courier.resend(who)

    # --- memory that is shared ------------------------------------------------------------------

    def attached(self, shard: int) -> bool:
        """A server reads gradients where they lie; returns whether that is news."""
        news = shard in self.unattached
        self.unattached.discard(shard)
        return news

    def attach(self, who: Contributor) -> list[k.Effect]:
        """Share memory with the servers on this host."""
        return [self._attach(shard, who) for shard in sorted(self.unattached)]

    def _attach(self, shard: int, who: Contributor) -> k.Effect:
        return k.Send(server_name(self.servers[shard]), m.Attach(who.worker, who.incarnation))

    # --- contributions ----------------------------------------------------------------------------

    def lay_out(self, spec: TableSpec, now: int) -> None:
        """The table exists: one courier for each shard, who carries its blocks to the server that leads it."""
        blocks, shards = cut(spec), range(len(self.servers))
        block_bytes = [block.elements * ITEM_BYTES[spec.tensors[block.tensor].dtype] for block in blocks]
        held = [owned(spec, shard, len(shards)) for shard in shards]
        self.every = [
            Courier(self.servers[shard], block_bytes, self.limits, held[shard], shard in self.near) for shard in shards
        ]
        self.of = {block: self.every[shard] for shard in shards for block in held[shard]}
        self.unattached = set(self.near)
        self.attaching.start(now)

    def push(self, blocks: Sequence[int], who: Contributor, now: int) -> list[k.Effect]:
        """Take these blocks along."""
        return [effect for block in blocks for effect in self.of[block].push(block, who, now)]

    def flush(self, who: Contributor, now: int) -> list[k.Effect]:
        """Everything is pushed: send what is gathered, unless the servers need not be told."""
        self.whole = not who.seeds and bool(self.near) and all(self.every[shard].whole for shard in self.near)
        if self.whole:
            for shard in self.near:
                self.every[shard].forget()
        return [effect for courier in self.every for effect in courier.flush(who, now)]

    def acknowledged(self, server: int, blocks: Sequence[int], now: int) -> None:
        """The server has staged these blocks."""
        shard = self.shard_of(server)
        if 0 <= shard < len(self.every):
            self.every[shard].acknowledged(blocks, now)

    def resend(self, shard: int, who: Contributor) -> list[k.Effect]:
        """What the server that leads this shard has not acknowledged."""
        return self.every[shard].resend(who)

    def forget(self) -> None:
        """The contribution is settled or given up: what comes next is another one."""
        for courier in self.every:
            courier.forget()

    @property
    def unacknowledged(self) -> list[int]:
        """Servers that have not acknowledged all that they were sent."""
        return [courier.server for courier in self.every if courier.unacknowledged]

    @property
    def counts(self) -> tuple[int, ...]:
        """By shard, how many blocks of this contribution its server has."""
        return tuple(
            len(courier.holds) if self.whole and courier.near else len(courier.carried) for courier in self.every
        )

    # --- time -------------------------------------------------------------------------------------

    def tick(self, who: Contributor, now: int) -> list[k.Effect]:
        """Repeat what was not answered for too long."""
        effects = self.attach(who) if self.unattached and self.attaching.due(now) else []
        for courier in self.every:
            effects += courier.overdue(who, now)
        return effects

    def awaited(self) -> str:
        """Which servers have yet to answer, in words; "": none."""
        if unstaged := self.unacknowledged:
            return f"{', '.join(map(server_name, unstaged))} did not acknowledge its gradients"
        if self.unattached:
            return f"server {self.servers[min(self.unattached)]} did not answer when asked to share memory"
        return ""
