"""Accounts: what the applied part of the log amounts to for whoever coordinates, kept by every shard.

Each shard sees every entry, so any one of them can tell a new coordinator who is settled up to where,
who is shut out, and which samples are accounted for. The entries themselves are kept only while some
shard may lack them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.core.ages import AGE_MAX, Ages
from shoal.ledger import Span, merged
from shoal.vocabulary import Contributor, Switch
from shoal.wire import messages as m


@dataclass
class Accounts:
    """The sum of all applied entries."""

    updated: int = 0  # the last entry that changed parameters
    closed: dict[int, tuple[int, int]] = field(default_factory=dict)  # worker -> (incarnation, clock) settled
    used: dict[int, tuple[int, int]] = field(default_factory=dict)  # worker -> (incarnation, clock) combined last
    fenced: dict[int, int] = field(default_factory=dict)  # worker -> incarnation
    released: dict[int, int] = field(default_factory=dict)  # worker -> incarnation that was given parameters
    ages: Ages = field(default_factory=Ages)
    switch: Switch | None = None  # the last one
    switched: int = 0  # the entry that brought it
    spans: dict[int, list[Span]] = field(default_factory=dict)  # data epoch -> samples accounted for, merged

    def add(self, commit: m.Commit) -> None:
        """One more entry is applied."""
        if commit.contributors:
            self.updated = commit.seq
        self.ages.add(commit)
        if commit.switch is not None:
            self.switch, self.switched = commit.switch, commit.seq
        for worker, incarnation in commit.fences:
            self.fenced[worker] = max(self.fenced.get(worker, -1), incarnation)
        for worker, incarnation, clock in commit.closes:
            self.closed[worker] = max(self.closed.get(worker, (-1, -1)), (incarnation, clock))
        for item in commit.contributors:
            self.used[item.contributor.worker] = item.contributor.incarnation, item.contributor.clock
        for worker, incarnation in commit.release:
            self.released[worker] = max(self.released.get(worker, -1), incarnation)
        for epoch, start, stop in commit.samples:
            self.spans[epoch] = merged([*self.spans.get(epoch, []), (start, stop)])

    def shuts_out(self, worker: int, incarnation: int) -> bool:
        """Whether this incarnation is fenced."""
        return incarnation <= self.fenced.get(worker, -1)

    def settled(self, who: Contributor) -> bool:
        """Whether this contribution's fate is sealed: nothing of it is taken any more."""
        closed = self.closed.get(who.worker, (-1, -1))
        return self.shuts_out(who.worker, who.incarnation) or (who.incarnation, who.clock) <= closed

    @property
    def accounted(self) -> tuple[tuple[int, int, int], ...]:
        """(data epoch, start, stop) of all samples in the log."""
        return tuple((epoch, *span) for epoch, spans in sorted(self.spans.items()) for span in spans)

    @property
    def updates(self) -> tuple[int, ...]:
        """The last entries that changed parameters, as many as ages are told from."""
        return tuple(self.ages.updates[-AGE_MAX:])

    @classmethod
    def of(cls, recovered: m.Recovered) -> Accounts:
        """Those of a shard that told them."""
        return cls(
            recovered.updated,
            {worker: (incarnation, clock) for worker, incarnation, clock in recovered.closed},
            {worker: (incarnation, clock) for worker, incarnation, clock in recovered.used},
            dict(recovered.fenced),
            dict(recovered.released),
            Ages(list(recovered.updates), dict(recovered.ages), recovered.dropped),
            recovered.switch,
            recovered.switched,
            spans_of(recovered.accounted),
        )


def spans_of(accounted: Iterable[tuple[int, int, int]]) -> dict[int, list[Span]]:
    """Samples by data epoch, merged, from (data epoch, start, stop)."""
    spans: dict[int, list[Span]] = {}
    for epoch, start, stop in accounted:
        spans.setdefault(epoch, []).append((start, stop))
    return {epoch: merged(found) for epoch, found in spans.items()}
