"""Leases: the samples that a worker's training thread has, and those it asks for.

A data epoch and a number tell one request from another, for answers may come twice, and late. What is held is told to
a coordinator that takes over: of the samples in nobody's hands it would give some out again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.vocabulary import Dataset, Lease
from shoal.wire import messages as m


@dataclass
class Leases:
    """What one worker has of the job's samples."""

    number: int = 0  # leases asked for
    epoch: int = 0  # the data epoch of the last one
    dataset: Dataset | None = None
    held: dict[int, Lease] = field(default_factory=dict)  # that the training thread has, by identity
    spare: Lease | None = None  # came with a release, not yet taken
    ended: int = -1  # the last data epoch that is over

    def take(self, dataset: Dataset, epoch: int) -> Lease | None:
        """The training thread asks for samples. Returns those that came unasked; None: ask the coordinator."""
        self.epoch, self.dataset = epoch, dataset
        self.number += 1
        self.held = {identity: lease for identity, lease in self.held.items() if lease.epoch >= epoch}
        lease, self.spare = self.spare, None
        if lease is None or lease.epoch != epoch:
            return None
        self.took(lease)
        return lease

    def request(self, worker: int, incarnation: int) -> m.LeaseRequest:
        """What the coordinator is asked."""
        assert self.dataset is not None
        return m.LeaseRequest(worker, incarnation, self.epoch, self.number, self.dataset)

    def answered(self, granted: m.Granted) -> bool:
        """Whether this is the answer to the last request."""
        return (granted.epoch, granted.number) == (self.epoch, self.number)

    def took(self, lease: Lease | None) -> None:
        """The training thread has it. None: the data epoch is over."""
        if lease is None:
            self.ended = self.epoch
        else:
            self.held[lease.identity] = lease

    def settled(self, identities: Iterable[int], spare: Lease | None) -> None:
        """A contribution with these samples is over; spare: came with the word of it."""
        self.spare = spare
        for identity in identities:
            self.held.pop(identity, None)

    @property
    def all(self) -> tuple[Lease, ...]:
        """Those in the training thread's hands, and the one that it has yet to take."""
        return (*self.held.values(), *((self.spare,) if self.spare is not None else ()))
