"""The registry of a simulated cluster: one leader at a time, until its lease runs out, under epochs that grow."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

GAP_MAX = 9  # epochs are not consecutive: etcd's grow with whatever anybody writes


@dataclass
class Registry:
    """lease_ms: from when a grant or a renewal is received here. All by the registry's own clock."""

    lease_ms: int
    rng: Random
    epoch: int = 0  # of the last leader
    until: int = 0  # it leads so long

    def leader(self, now: int) -> int | None:
        """The epoch of who leads."""
        return self.epoch if now < self.until else None

    def grant(self, now: int) -> int | None:
        """Let somebody lead, unless another does; returns the epoch."""
        if self.leader(now) is not None:
            return None
        self.epoch, self.until = self.epoch + self.rng.randint(1, GAP_MAX), now + self.lease_ms
        return self.epoch

    def renew(self, epoch: int, now: int) -> bool:
        """Whether the leader of this epoch still leads, and does for another lease."""
        if self.leader(now) != epoch:
            return False
        self.until = now + self.lease_ms
        return True

    def takes(self, epoch: int, now: int) -> bool:
        """Whether what the leader of this epoch writes is kept."""
        return self.leader(now) == epoch

    def oust(self, now: int) -> None:
        """The leader's entry is removed."""
        self.until = min(self.until, now)
