"""A snapshot that this worker asked for: until it is there, could not be written, or is late.

It is written beside whatever the training thread does. (What other snapshots ask of this worker is its recollection.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.backoff import Backoff
from shoal.vocabulary import COORDINATOR
from shoal.wire import messages as m


@dataclass
class Snapshots:
    """One at a time. number: of those asked for."""

    limits: Limits
    number: int = 0
    awaited: m.SnapshotRequest | None = None
    asked_at: int = 0
    again: Backoff = field(init=False)

    def __post_init__(self) -> None:
        self.again = Backoff(self.limits.resend_ms)

    def ask(self, worker: int, incarnation: int, path: str, keep: int, now: int) -> list[k.Effect]:
        """Have one written at `path`."""
        assert self.awaited is None, "one snapshot at a time"
        self.number += 1
        self.awaited = m.SnapshotRequest(worker, incarnation, self.number, path, keep)
        self.asked_at = now
        self.again.start(now)
        return [k.Send(COORDINATOR, self.awaited)]

    def done(self, done: m.SnapshotDone) -> list[k.Effect]:
        """The coordinator says what came of it."""
        if self.awaited is None or self.awaited.number != done.number:
            return []
        self.awaited = None
        return [k.Snapshotted(done.path, done.version, done.error)]

    def tick(self, now: int) -> list[k.Effect]:
        """Ask again; do not wait for ever."""
        if self.awaited is None:
            return []
        effects: list[k.Effect] = [k.Send(COORDINATOR, self.awaited)] if self.again.due(now) else []
        if now - self.asked_at >= self.limits.wait_ms:
            late = f"it was not written within {self.limits.wait_ms / 1000:g} s (SHOAL_WAIT_MS)"
            effects.append(k.Snapshotted(self.awaited.path, 0, late))
            self.awaited = None
        return effects
