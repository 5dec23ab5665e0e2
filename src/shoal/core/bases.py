"""Bases: which parameters each worker may compute on, as the log says, and so what a server must keep of older ones.

A worker that asked again for a version, and had it after all, computes on the version before its last: the two last are
known, and its contribution names the one.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def compensation(self, wanted: DelayCompensated, unit: Sequence[Weighted], updated: int) -> k.Compensation:
        """What the next update has to make up for; updated: the last one before it. unit: a worker's contribution, or
        those of the ranks of a group; ranks that were given versions with different parameters have no base."""
        workers, bases = {item.contributor.worker for item in unit}, {self._base(item) for item in unit}
        base = bases.pop() if len(bases) == 1 else k.UNKNOWN
        others = (versions.values() for worker, (_, versions) in self.known.items() if worker not in workers)
        needed = tuple(sorted({other for versions in others for other in versions}))
        return k.Compensation(wanted.rate, wanted.mean_square, base, updated, needed)

    def _base(self, item: Weighted) -> int:
        who = item.contributor
        incarnation, versions = self.known.get(who.worker, (-1, {}))
        return versions.get(item.version, k.UNKNOWN) if incarnation == who.incarnation else k.UNKNOWN
