"""A bad network for tests: frames are lost, repeated, late and out of order, as one seed decides.

    wrap = faulty(Faults(drop=0.1, duplicate=0.1, delay=0.3), seed=7)
    await connect(address, receiver, limits, deadline_ms, wrap)

works over any transport. What a fault holds back is a snapshot of the payload, so the sender may
reuse its buffers. Whole frames only: broken bytes are the decoder's tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from shoal.errors import ConfigurationError
from shoal.transport.base import Connection, Wrap, Wrapped
from shoal.wire import messages as m
from shoal.wire.framing import Buffer


@dataclass(frozen=True)
class Faults:
    """Probabilities, for each frame, of what happens to it.

    drop: it never arrives. duplicate: a second copy follows, which may be delayed or overtaken on
    its own. delay: it leaves up to delay_ms_max later. reorder: it leaves after the next frame, or
    after delay_ms_max where none follows. spares: messages that nothing happens to, by default
    those that open a connection and are not repeated.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    delay_ms_max: int = 20
    spares: tuple[type[m.Message], ...] = (m.Hello, m.Accepted, m.Refused)

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate", "delay", "reorder"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"Faults.{name}={value} is no probability: it must be in [0, 1]")


def faulty(faults: Faults, seed: int) -> Wrap:
    """A wrap for `listen` and `connect`; each connection it wraps gets chances of its own."""
    ordinals = count()
    return lambda connection: FaultyConnection(connection, faults, Random(f"{seed}/{next(ordinals)}"))


class FaultyConnection(Wrapped):
    """A Connection whose frames meet faults on their way out."""

    def __init__(self, inner: Connection, faults: Faults, random: Random) -> None:
        super().__init__(inner)
        self._faults = faults
        self._random = random
        self._pending: dict[int, tuple[asyncio.TimerHandle, m.Message, Sequence[Buffer]]] = {}  # in order of send
        self._overtaken: list[int] = []  # pending frames that leave right after the next one
        self._ordinals = count()

    def send(self, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        if isinstance(message, self._faults.spares):
            self.inner.send(message, payload)
            return
        if files:  # their sender may close them: they are lost or leave at once
            if not self._happens(self._faults.drop):
                self.inner.send(message, payload, files)
            return
        overtaken, self._overtaken = self._overtaken, []
        if not self._happens(self._faults.drop):
            for _ in range(2 if self._happens(self._faults.duplicate) else 1):
                self._dispatch(message, payload)
        for ordinal in overtaken:
            self._release(ordinal)

    def close(self) -> None:
        """Sends what is held back, then closes: a delay alone loses nothing."""
        for ordinal in list(self._pending):
            self._release(ordinal)
        self.inner.close()

    def _dispatch(self, message: m.Message, payload: Sequence[Buffer]) -> None:
        late, overtaken = self._happens(self._faults.delay), self._happens(self._faults.reorder)
        if not late and not overtaken:
            self.inner.send(message, payload)
            return
        delay_ms = self._random.uniform(0, self._faults.delay_ms_max) if late else self._faults.delay_ms_max
        ordinal = next(self._ordinals)
        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._release, ordinal)
        self._pending[ordinal] = timer, message, [bytes(piece) for piece in payload]
        if overtaken:
            self._overtaken.append(ordinal)

    def _release(self, ordinal: int) -> None:
        if ordinal in self._pending:
            timer, message, snapshot = self._pending.pop(ordinal)
            timer.cancel()
            self.inner.send(message, snapshot)

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability
