"""Nodes that are stopped for a while, as SIGSTOP does it: they do nothing, and what is sent to them waits."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.vocabulary import COORDINATOR

FOR_GOOD = 1 << 40
PATIENCE_MS = 10_000  # from the end of the coordinator to that of everybody who waits for it


@dataclass
class Frozen:
    """Who is stopped, until when; and who was told what by the coordinator, whether it could read it or not."""

    lease_ms: int
    thaws: dict[str, int] = field(default_factory=dict)
    heard_at: dict[str, int] = field(default_factory=dict)  # by node: the last word of the coordinator reached it

    def until(self, node: str, now: int) -> int | None:
        """When it goes on; None: it runs."""
        thaw = self.thaws.get(node, 0)
        return thaw if now < thaw else None

    @property
    def leaderless(self) -> bool:
        """The coordinator will never say anything again."""
        return self.thaws.get(COORDINATOR, 0) == FOR_GOOD

    def arrived(self, source: str, target: str, now: int) -> None:
        if source == COORDINATOR:
            self.heard_at[target] = now

    def may_give_up(self, node: str, now: int) -> bool:
        """Whether the coordinator was really silent for as long as that."""
        return now - self.heard_at.get(node, 0) >= self.lease_ms  # 0: never, since it began
