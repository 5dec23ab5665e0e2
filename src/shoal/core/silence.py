"""Silence: how long a peer was not heard, counted only while this node was there to hear it.

What it promises: a node that was stopped itself (by a debugger, or on a host that had no time for it)
blames nobody for that time; it begins to count anew with its first look at the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.config import Limits

ASLEEP = 4  # who did not look at the clock for a quarter of a lease was stopped


@dataclass
class Watch:
    """Notices at a tick that this node was stopped before it."""

    limits: Limits
    ticked_at: int | None = None

    def slept(self, now: int) -> bool:
        """Whether the tick before this one is longer ago than it can be while this node runs."""
        before, self.ticked_at = self.ticked_at, now
        return before is not None and now - before >= max(self.limits.lease_ms // ASLEEP, 2 * self.limits.tick_ms)


@dataclass
class Silence:
    """Of one peer."""

    limits: Limits
    since: int | None = None  # when it was heard last, or counting began; None: it is not expected to speak
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.limits)

    def heard(self, now: int) -> None:
        """It spoke, or is expected to from now on."""
        self.since = now

    def too_long_ms(self, now: int) -> int | None:
        """To be asked at every tick: for how long it has been silent, once that is lease_ms or more."""
        slept = self.watch.slept(now)
        if self.since is None:
            return None
        if slept:
            self.since = now
        silent_ms = now - self.since
        return silent_ms if silent_ms >= self.limits.lease_ms else None


def blame(who: str, address: str, pid: int, silent_ms: int) -> str:
    """That the coordinator was silent, in words: who noticed, where it is, what to do next."""
    where = " ".join((*((f"process {pid}",) if pid else ()), *((f"at {address}",) if address else ())))
    return (
        f"{who} heard nothing from the coordinator{f' ({where})' if where else ''} for {silent_ms / 1000:.1f} s: "
        f"it is stopped, too busy or cut off; look at its process and the way to it, and start the job again "
        f"(SHOAL_LEASE_MS sets how long it may be silent)"
    )
