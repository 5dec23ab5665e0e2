"""How often processes of a job may be started again, and have been."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Restarts:
    """Of one job, whatever is started again."""

    allowed: int
    taken: int = 0

    @property
    def left(self) -> bool:
        return self.taken < self.allowed

    def take(self) -> str:
        """One more; returns which it is."""
        self.taken += 1
        return f"restart {self.taken} of {self.allowed}"

    @property
    def spent(self) -> str:
        """That none is left, in words."""
        return f"no restart is left of {self.allowed} (--max-restarts)"
