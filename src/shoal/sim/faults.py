"""The network between simulated nodes: each message is lost, doubled, delayed, or comes back as a ghost.

After the scenario heals, messages only take a few milliseconds, so a job that hangs does so by
its own fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from shoal.sim.scenario import CALM, Cut, Links, Scenario

GHOST_MS = (200, 3_000)  # how long after it was sent a ghost comes back


@dataclass
class Counts:
    """How often each fault really happened."""

    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    ghosts: int = 0


class Network:
    """Says when copies of a message arrive: none when it is lost, several when it is doubled."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.counts = Counts()
        self._links = scenario.links
        self._cuts = scenario.cuts
        self._heals_at_ms = scenario.heals_at_ms
        self._rng = Random(seed)

    def arrivals(self, source: str, target: str, now: int) -> list[int]:
        """Virtual times at which a message sent now arrives."""
        self.counts.sent += 1
        links = self._links if now < self._heals_at_ms else CALM
        if self._lost(links, source, target, now):
            self.counts.lost += 1
            return []
        arrivals = [now + self._delay_ms(links)]
        if self._rng.random() < links.duplication:
            self.counts.duplicated += 1
            arrivals.append(now + self._delay_ms(links))
        if self._rng.random() < links.ghost_chance:
            self.counts.ghosts += 1
            arrivals.append(now + self._rng.randint(*GHOST_MS))
        return arrivals

    def duration_ms(self, span: tuple[int, int]) -> int:
        """How long something of the machines takes, such as a task of a store."""
        return self._rng.randint(*span)

    def _lost(self, links: Links, source: str, target: str, now: int) -> bool:
        if now < self._heals_at_ms and any(_between(cut, source, target, now) for cut in self._cuts):
            return True
        return self._rng.random() < links.loss

    def _delay_ms(self, links: Links) -> int:
        delay = self._rng.randint(*links.delay_ms)
        return delay * 10 if self._rng.random() < links.late_chance else delay


def _between(cut: Cut, source: str, target: str, now: int) -> bool:
    return cut.start_ms <= now < cut.stop_ms and {cut.one, cut.other} == {source, target}
