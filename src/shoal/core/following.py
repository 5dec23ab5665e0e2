"""Following: which coordinator a node of a job with a registry follows, and when it looks for another.

What it promises: a node that lost its coordinator, or hears nothing of it, asks the registry who leads,
until it has reached one; it never goes back to one of an older epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shoal.config import Limits
from shoal.core.silence import Silence


@dataclass
class Following:
    """epoch and address: of whom this node follows, as far as it knows (0: only where it is)."""

    limits: Limits
    address: str = ""
    epoch: int = 0
    seeks: bool = False  # the registry is to be asked
    _silence: Silence = field(init=False)

    def __post_init__(self) -> None:
        # By half of the time after which the node would give up, another one may lead and be reached.
        self._silence = Silence(replace(self.limits, lease_ms=max(1, self.limits.lease_ms // 2)))

    def lost(self) -> None:
        """The connection to the coordinator broke, or it cannot be reached."""
        self.seeks = True

    def reached(self, now: int) -> None:
        """It is connected to whom it follows."""
        self.seeks = False
        self._silence.heard(now)

    def heard(self, now: int) -> None:
        """The coordinator spoke."""
        self.seeks = False
        self._silence.heard(now)

    def tick(self, now: int) -> None:
        """A coordinator that hangs keeps its connections: only its silence shows."""
        if self._silence.too_long_ms(now) is not None:
            self.seeks = True

    def told(self, epoch: int, address: str) -> bool:
        """The registry says who leads; returns whether to go there from where it is now."""
        other = epoch > self.epoch if self.epoch else address != self.address
        if epoch >= self.epoch:
            self.epoch, self.address = epoch, address
        return other
