"""Bases: which parameters each worker may compute on, as the log says, and so what a server must keep of older ones.

A worker that asked again for a version, and had it after all, computes on the version before its last: the two last are
known, and its contribution names the one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.policy import DelayCompensated
from shoal.vocabulary import Weighted
from shoal.wire import messages as m

RELEASES = 2  # of a worker that count, since it last settled a contribution


@dataclass
class Bases:
    """known: worker -> its incarnation, and by version that it was given since it last settled a contribution, the last
    update in it. Versions between two updates have the same parameters: they are one base."""

    known: dict[int, tuple[int, dict[int, int]]] = field(default_factory=dict)

    def add(self, commit: m.Commit, updated: int) -> None:
        """One more entry is applied. updated: the last that changed parameters, this one included."""
        for worker, incarnation in commit.fences:
            if self.known.get(worker, (incarnation + 1, {}))[0] <= incarnation:
                del self.known[worker]
        for worker, incarnation, _ in commit.closes:
            if self.known.get(worker, (-1, {}))[0] == incarnation:
                del self.known[worker]
        for worker, incarnation in commit.release:
            last, versions = self.known.get(worker, (incarnation, {}))
            versions = {**(versions if last == incarnation else {}), commit.seq: updated}
            self.known[worker] = incarnation, dict(sorted(versions.items())[-RELEASES:])

    def compensation(self, wanted: DelayCompensated, item: Weighted, updated: int) -> k.Compensation:
        """What the next update has to make up for; updated: the last one before it."""
        who = item.contributor
        incarnation, versions = self.known.get(who.worker, (-1, {}))
        base = versions.get(item.version, k.UNKNOWN) if incarnation == who.incarnation else k.UNKNOWN
        others = (bases.values() for worker, (_, bases) in self.known.items() if worker != who.worker)
        needed = tuple(sorted({other for bases in others for other in bases}))
        return k.Compensation(wanted.rate, wanted.mean_square, base, updated, needed)
