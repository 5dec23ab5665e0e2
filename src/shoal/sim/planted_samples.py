"""Ledgers that deal samples wrongly, in one way each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.core.coordinator import Coordinator
from shoal.core.dispatch import Dispatch
from shoal.core.membership import Member
from shoal.ledger import Ledger
from shoal.sim.world import Machines
from shoal.vocabulary import Dataset, Lease


class GrantsTwice(Ledger):
    """Leaves what it leases on the list of free samples, now and then."""

    def grant(self, worker: int, share: float = 1.0, epoch: int | None = None) -> Lease | None:
        lease = super().grant(worker, share, epoch)
        if lease is not None and lease.identity % 3 == 2:
            self.free.insert(0, lease.spans[0])
        return lease


class LosesSamples(Ledger):
    """Forgets a part of what a commit accounts for."""

    def commit(self, worker: int, identities: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
        return super().commit(worker, identities)[1:]


class BuriesLeases(Ledger):
    """A dead worker's samples are not leased again."""

    def take_back(self, worker: int) -> int:
        free = list(self.free)
        taken = super().take_back(worker)
        self.free = free
        return taken


class DealsAsAsked(Dispatch):
    """Deals samples in the order in which requests arrive."""

    def next_answers(self, members: Sequence[Member], lockstep: bool, clock: int) -> list[tuple[Member, Lease | None]]:
        return super().next_answers(members, False, clock)


@dataclass
class WithLedger(Dispatch):
    """A dispatch that keeps its samples in another ledger."""

    kind: type[Ledger] = Ledger

    def open(self, dataset: Dataset) -> str:
        self.ledger = self.ledger or self.kind(dataset)
        return super().open(dataset)


def with_ledger(kind: type[Ledger]) -> Machines:
    return Machines(coordinator=lambda job, **facts: Coordinator(job, dispatch=WithLedger(kind=kind), **facts))
