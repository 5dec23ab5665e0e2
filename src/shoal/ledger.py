"""The ledger of samples: per data epoch, each sample is in exactly one commit.

A sample is always in one of three places: free, leased to one worker, or committed. Leases are
positions in the epoch's shuffled order; workers compute the order themselves from the seed, so no
index travels. Free positions are handed out lowest first, so the same requests in the same order
get the same samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.vocabulary import Dataset, Lease

Span = tuple[int, int]


@dataclass
class Ledger:
    """Leases the samples of `dataset`, one data epoch after the other."""

    dataset: Dataset
    epoch: int = 0
    committed: int = 0  # samples of this epoch
    free: list[Span] = field(default_factory=list)
    left: dict[int, list[Span]] = field(default_factory=dict)  # free samples of earlier data epochs
    leased: dict[int, tuple[int, Lease]] = field(default_factory=dict)  # identity -> (worker, lease)
    identities: int = 0

    def __post_init__(self) -> None:
        self.free = [(0, self.dataset.size)]

    @classmethod
    def recovered(
        cls, dataset: Dataset, spans: Mapping[int, Sequence[Span]], leases: Iterable[tuple[int, Lease]], identities: int
    ) -> Ledger:
        """The ledger of a job that is under way.

        spans: samples that are committed, by data epoch; leases: (worker, lease) of those that are held;
        identities: of leases that were given already.
        """
        held = list(leases)
        ledger = cls(dataset, max([0, *spans, *(lease.epoch for _, lease in held)]), identities=identities)
        ledger.committed = sum(stop - start for start, stop in spans.get(ledger.epoch, ()))
        ledger.leased = {lease.identity: (worker, lease) for worker, lease in held}
        for epoch in range(ledger.epoch + 1):
            of_epoch = (lease.spans for _, lease in held if lease.epoch == epoch)
            taken = [*spans.get(epoch, ()), *(span for part in of_epoch for span in part)]
            free = _gaps(merged(taken), dataset.size)
            if epoch == ledger.epoch:
                ledger.free = free
            elif free:
                ledger.left[epoch] = free
        return ledger

    @property
    def accounted(self) -> dict[int, list[Span]]:
        """What is committed, by data epoch; of an epoch that was broken off, all of it: nobody comes back for it."""
        found: dict[int, list[Span]] = {}
        for epoch in range(self.epoch + 1):
            open_spans = list(self.free if epoch == self.epoch else self.left.get(epoch, ()))
            for _, lease in self.leased.values():
                open_spans += lease.spans if lease.epoch == epoch else ()
            found[epoch] = _gaps(merged(open_spans), self.dataset.size)
        return found

    @property
    def done(self) -> bool:
        """Every sample of the epoch is committed."""
        return self.committed == self.dataset.size

    def advance(self, keep: bool = True) -> None:
        """Open the next data epoch. Samples already in an unfinished gradient stay leased until its commit;
        those still free are kept for workers that come back for them, unless the epoch was broken off."""
        if keep and self.free:
            self.left[self.epoch] = self.free
        self.epoch += 1
        self.committed = 0
        self.free = [(0, self.dataset.size)]

    def grant(self, worker: int, share: float = 1.0, epoch: int | None = None) -> Lease | None:
        """Lease up to batch * share free samples (at least one) to `worker`; None when none is free.

        epoch: of an earlier data epoch, if not of the open one.
        """
        epoch = self.epoch if epoch is None else epoch
        free = self.free if epoch == self.epoch else self.left.get(epoch, [])
        if not free:
            return None
        wanted = max(1, round(self.dataset.batch * share))
        taken: list[Span] = []
        while wanted and free:
            start, stop = free.pop(0)
            cut = min(stop, start + wanted)
            taken.append((start, cut))
            wanted -= cut - start
            if cut < stop:
                free.insert(0, (cut, stop))
        self.identities += 1
        lease = Lease(self.identities, epoch, tuple(taken))
        self.leased[lease.identity] = (worker, lease)
        return lease

    def nothing(self, worker: int, epoch: int) -> Lease:
        """A lease without samples: its worker takes part in a step for which there are some for others only."""
        self.identities += 1
        lease = Lease(self.identities, epoch, ())
        self.leased[lease.identity] = (worker, lease)
        return lease

    def commit(self, worker: int, identities: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
        """Settle these leases of `worker`; returns (epoch, start, stop) of the samples accounted for.

        Leases that were taken back meanwhile are passed over: their samples belong to someone else.
        """
        spans: list[tuple[int, int, int]] = []
        for identity in identities:
            if self.leased.get(identity, (None,))[0] != worker:
                continue
            _, lease = self.leased.pop(identity)
            self.committed += lease.samples if lease.epoch == self.epoch else 0
            spans += [(lease.epoch, start, stop) for start, stop in lease.spans]
        return tuple(spans)

    def take_back(self, worker: int) -> int:
        """Free all that is leased to `worker`; returns how many samples are free again."""
        mine = [identity for identity, (owner, _) in self.leased.items() if owner == worker]
        leases = [self.leased.pop(identity)[1] for identity in mine]
        for lease in leases:
            if lease.epoch == self.epoch:
                self.free = merged([*self.free, *lease.spans])
            else:
                self.left[lease.epoch] = merged([*self.left.get(lease.epoch, []), *lease.spans])
        return sum(lease.samples for lease in leases)


def _gaps(taken: Sequence[Span], size: int) -> list[Span]:
    """What is left of 0..size."""
    edges = [0, *(edge for span in taken for edge in span), size]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def merged(spans: list[Span]) -> list[Span]:
    """Sorted, with touching spans joined."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
