"""Filling: a primary gives a new backup its shard, a few blocks at a time, while training goes on.

Blocks go out between two updates, at one version, and are sent again, as they are by then, until they are
acknowledged. Each update reaches the backup after the blocks that were sent before it, so it updates
what it has, and needs no update twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core.backoff import Backoff


@dataclass
class Gift:
    """What one server lacks. under_way: sent, and not acknowledged; follows: it has said that it knows the log."""

    lacking: list[int]
    silence: Backoff
    under_way: tuple[int, ...] = ()
    told: bool = False
    follows: bool = False


@dataclass
class Filling:
    """By server, of one shard. block_bytes: of a block with its states."""

    limits: Limits
    block_bytes: Callable[[int], int]
    gifts: dict[int, Gift] = field(default_factory=dict)

    def expect(self, servers: Iterable[int], blocks: Iterable[int], now: int) -> None:
        """These servers are to be filled, and no others."""
        wanted = set(servers)
        self.gifts = {server: gift for server, gift in self.gifts.items() if server in wanted}
        for server in wanted - self.gifts.keys():
            gift = self.gifts[server] = Gift(list(blocks), Backoff(self.limits.resend_ms))
            gift.silence.start(now)

    def again(self, server: int) -> None:
        """The connection to this server is there, or there again: what was under way may be lost."""
        gift = self.gifts.get(server)
        if gift is not None:
            gift.under_way, gift.told = (), gift.follows

    def acknowledged(self, server: int, blocks: Iterable[int], now: int) -> None:
        """The server has these blocks."""
        gift = self.gifts.get(server)
        if gift is not None:
            has, gift.follows = set(blocks), True
            gift.lacking = [block for block in gift.lacking if block not in has]
            gift.under_way = tuple(block for block in gift.under_way if block not in has)
            gift.silence.start(now)

    def due(self, now: int) -> list[tuple[int, tuple[int, ...], bool]]:
        """What to send now, between two updates: (server, blocks, whether it has yet to be told of the log)."""
        found: list[tuple[int, tuple[int, ...], bool]] = []
        for server, gift in self.gifts.items():
            if gift.follows and not gift.lacking:
                continue
            awaited = bool(gift.under_way) or (gift.told and not gift.follows)
            if awaited and not gift.silence.due(now):
                continue
            if not awaited:
                gift.silence.start(now)
            gift.told, gift.under_way = True, self._next(gift.lacking)
            found.append((server, gift.under_way, not gift.follows))
        return found

    def _next(self, lacking: list[int]) -> tuple[int, ...]:
        """As many blocks as go at a time."""
        count = held = 0
        while count < len(lacking) and held < self.limits.fill_bytes_target:
            held += self.block_bytes(lacking[count])
            count += 1
        return tuple(lacking[:count])
