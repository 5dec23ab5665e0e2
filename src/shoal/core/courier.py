"""A courier: takes a worker's gradient blocks to one server, and again until each is acknowledged.

Small blocks travel together: a frame leaves once it is full, or when nothing more will come. Blocks
that lie in shared memory do not travel at all, so one frame at the end names them; and none does when
they are all that the server holds, for then the coordinator's word is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.backoff import Backoff
from shoal.vocabulary import Contributor, server_name
from shoal.wire import messages as m


@dataclass
class Courier:
    """Blocks of one contribution on their way to one server. holds: blocks of its shard; near: in shared memory."""

    server: int
    block_bytes: Sequence[int]  # by block
    limits: Limits
    holds: tuple[int, ...] = ()
    near: bool = False
    gathered: list[int] = field(default_factory=list)  # waiting to fill a frame
    gathered_bytes: int = 0
    unacknowledged: set[int] = field(default_factory=set)
    carried: set[int] = field(default_factory=set)  # sent of this contribution, acknowledged or not
    silence: Backoff = field(init=False)

    def __post_init__(self) -> None:
        self.silence = Backoff(self.limits.resend_ms)

    def push(self, block: int, who: Contributor, now: int) -> list[k.Effect]:
        """Take a block along."""
        self.gathered.append(block)
        self.gathered_bytes += self.block_bytes[block]
        full = self.gathered_bytes >= self.limits.frame_bytes_target and not self.near
        return self.flush(who, now) if full else []

    @property
    def whole(self) -> bool:
        """Whether all that the server holds lies in shared memory, and it was told of none of it."""
        return self.near and len(set(self.gathered)) == len(self.holds)

    def flush(self, who: Contributor, now: int) -> list[k.Effect]:
        """Send what is gathered as one frame, full or not."""
        if not self.gathered:
            return []
        if not self.unacknowledged:
            self.silence.start(now)
        blocks = tuple(self.gathered)
        self.unacknowledged.update(blocks)
        self.carried.update(blocks)
        self.gathered, self.gathered_bytes = [], 0
        return [self._frame(who, blocks)]

    def acknowledged(self, blocks: Iterable[int], now: int) -> None:
        """The server has staged these blocks."""
        self.unacknowledged.difference_update(blocks)
        self.silence.start(now)

    def move(self, server: int) -> None:
        """Another server holds the shard from here on: what the one before acknowledged was acknowledged in vain."""
        self.server = server
        self.unacknowledged.update(self.carried)

    def carry_whole(self) -> None:
        """The server does not share memory, as the one before did: it must be sent what that one saw where it lies."""
        self.unacknowledged.update(self.holds)
        self.carried.update(self.holds)

    def overdue(self, who: Contributor, now: int) -> list[k.Effect]:
        """What to send again because the server has been silent for too long."""
        return self.resend(who) if self.unacknowledged and self.silence.due(now) else []

    def resend(self, who: Contributor) -> list[k.Effect]:
        """All unacknowledged blocks, in frames of the usual size."""
        frames: list[k.Effect] = []
        blocks: list[int] = []
        held = 0
        for block in sorted(self.unacknowledged):
            blocks.append(block)
            held += self.block_bytes[block]
            if held >= self.limits.frame_bytes_target:
                frames.append(self._frame(who, tuple(blocks)))
                blocks, held = [], 0
        if blocks:
            frames.append(self._frame(who, tuple(blocks)))
        return frames

    def forget(self) -> None:
        """The contribution is settled or given up: what comes next is another one."""
        self.gathered, self.gathered_bytes = [], 0
        self.unacknowledged.clear()
        self.carried.clear()

    def _frame(self, who: Contributor, blocks: tuple[int, ...]) -> k.Effect:
        return k.Send(server_name(self.server), m.Stage(who, blocks))
