"""Bases: which parameters each worker computes on, as the log says, and so what a server must keep of older ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.policy import DelayCompensated
from shoal.vocabulary import Contributor
from shoal.wire import messages as m


@dataclass
class Bases:
    """known: worker -> its incarnation, and the last update in the parameters that it was given and has not settled a
    contribution for. Versions between two updates have the same parameters: they are one base."""

    known: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, commit: m.Commit, updated: int) -> None:
        """One more entry is applied. updated: the last that changed parameters, this one included."""
        for worker, incarnation in commit.fences:
            if self.known.get(worker, (incarnation + 1, 0))[0] <= incarnation:
                del self.known[worker]
        for worker, incarnation, _ in commit.closes:
            if self.known.get(worker, (-1, 0))[0] == incarnation:
                del self.known[worker]
        self.known.update({worker: (incarnation, updated) for worker, incarnation in commit.release})

    def compensation(self, wanted: DelayCompensated, who: Contributor, updated: int) -> k.Compensation:
        """What the next update has to make up for; updated: the last one before it."""
        incarnation, base = self.known.get(who.worker, (-1, k.UNKNOWN))
        others = {other for worker, (_, other) in self.known.items() if worker != who.worker}
        base = base if incarnation == who.incarnation else k.UNKNOWN
        return k.Compensation(wanted.rate, wanted.mean_square, base, updated, tuple(sorted(others)))
