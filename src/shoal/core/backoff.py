"""Backoff: when to repeat what was not answered. Each wait is twice as long as the one before, up
to a limit, so that a peer that is late is not buried under repetitions of what it has yet to read."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST = 8  # waits grow to so many times the first


@dataclass
class Backoff:
    """One thing that is repeated until it is answered."""

    resend_ms: int  # the first wait
    since: int = 0
    wait_ms: int = 0

    def start(self, now: int) -> None:
        """It was sent, or there was progress: be patient from here on."""
        self.since, self.wait_ms = now, self.resend_ms

    def due(self, now: int) -> bool:
        """Whether to repeat it now; if so, the next wait begins."""
        if now - self.since < self.wait_ms:
            return False
        self.since, self.wait_ms = now, min(self.wait_ms * 2, self.resend_ms * LONGEST)
        return True
