"""What waits to leave on one connection, the most urgent first.

Messages without payload go before those with it, whatever came first. Of parameters those of the older
version go first, and within a version the lower blocks, which the next forward needs first. All other
payload, gradients among it, keeps the order in which it came, as do frames of equal urgency. The
protocol allows it: every message may be reordered (docs/decisions/0002).

Payload is held by reference, never copied: what waits keeps alive the memory that it lies in.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from shoal.wire import messages as m
from shoal.wire.framing import Buffer

Urgency = tuple[int, int, int]  # the smallest leaves first

CONTROL: Urgency = (0, 0, 0)
BULK: Urgency = (1, 0, 0)


@dataclass(frozen=True)
class Frame:
    """An encoded message and its payload. nbytes: of both."""

    head: bytes
    payload: Sequence[Buffer]
    nbytes: int


class Queue:
    """Frames by urgency; `held_bytes` is what they add up to.

    Several connections to one peer may take from one queue: each as fast as it can send. users: how many do.
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.users = 1
        self._frames: list[tuple[Urgency, int, Frame]] = []  # a heap
        self._ordinals = count()

    def put(self, message: m.Message, frame: Frame) -> None:
        heapq.heappush(self._frames, (urgency(message, bool(frame.payload)), next(self._ordinals), frame))
        self.held_bytes += frame.nbytes

    def take(self) -> Frame:
        """The most urgent frame. There must be one."""
        _, _, frame = heapq.heappop(self._frames)
        self.held_bytes -= frame.nbytes
        return frame

    def clear(self) -> None:
        """Forget all frames, and let go of their memory."""
        self._frames.clear()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)


def urgency(message: m.Message, has_payload: bool) -> Urgency:
    """How soon a message should leave."""
    if not has_payload:
        return CONTROL
    if isinstance(message, m.Parameters):
        return (1, message.version, min(message.blocks, default=0))
    return BULK
