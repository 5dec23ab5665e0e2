"""Dispatch: which member gets which samples, and when a data epoch is over.

Under a lockstep policy samples are dealt in worker order once it is clear who takes part in the
clock, so the same seeds give the same batches whatever the order in which requests arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.core.membership import COMPUTING, IDLE, Member
from shoal.core.saving import Samples
from shoal.ledger import Ledger, Span, merged
from shoal.vocabulary import Dataset, Lease, worker_name
from shoal.wire import messages as m

EVEN_SHARE = 0.8  # a worker at least this fast, of the fastest, takes whole batches


@dataclass
class Dispatch:
    """The ledger of the job's training set, once a worker has opened it."""

    ledger: Ledger | None = None
    spans: Mapping[int, Sequence[Span]] = field(default_factory=dict)  # committed before this coordinator began
    identities: int = 0  # of leases before its own
    before: Mapping[int, Sequence[Span]] = field(default_factory=dict)  # committed in the snapshot the job began from
    before_of: Dataset | None = None

    @property
    def samples(self) -> Samples:
        """The training set, and (data epoch, start, stop) of all its samples that are committed."""
        dataset, found = self.before_of, self.before
        if self.ledger is not None:
            dataset, found = self.ledger.dataset, self.ledger.accounted
        return dataset, tuple((epoch, *span) for epoch, spans in sorted(found.items()) for span in spans)

    def open(self, dataset: Dataset) -> str:
        """Open the training set, or check that it is the one that is open; returns what is wrong."""
        if self.ledger is None:
            self.ledger = Ledger.recovered(dataset, self._committed(dataset), (), self.identities)
        known = self.ledger.dataset
        if known != dataset:
            return (
                f"the job leases samples of {known}, this worker asks for {dataset}: a job has one training set, "
                f"opened alike by every worker (use a plain DataLoader for validation)"
            )
        return ""

    def resume(self, spans: Mapping[int, Sequence[Span]], dataset: Dataset | None) -> None:
        """Go on from a snapshot in which these samples of `dataset` are committed; of another one they mean nothing."""
        self.before, self.before_of = spans, dataset

    def recover(self, spans: Mapping[int, Sequence[Span]], members: Sequence[Member], identities: int) -> None:
        """Go on where a coordinator of an older epoch was.

        spans: samples committed, by data epoch; identities: above all that it gave to leases.
        """
        self.spans, self.identities = spans, identities
        for request in [member.request for member in members if member.request is not None][:1]:
            held = [(member.worker, lease) for member in members for lease in member.leases]
            self.ledger = Ledger.recovered(request.dataset, self._committed(request.dataset), held, identities)

    def done_before(self) -> int:
        """How many samples of the training set that is open were committed in the snapshot the job began from."""
        if self.ledger is None or not self._resumes(self.ledger.dataset):
            return 0
        return sum(stop - start for spans in self.before.values() for start, stop in spans)

    def _resumes(self, dataset: Dataset) -> bool:
        known = self.before_of
        return known is not None and (known.size, known.seed) == (dataset.size, dataset.seed)

    def _committed(self, dataset: Dataset) -> dict[int, list[Span]]:
        """All samples of the training set that are in the log, that of the snapshot included."""
        before = self.before if self._resumes(dataset) else {}
        epochs = sorted({*self.spans, *before})
        return {epoch: merged([*before.get(epoch, ()), *self.spans.get(epoch, ())]) for epoch in epochs}

    def ask(
        self, member: Member, request: m.LeaseRequest, members: Sequence[Member], waiting: str
    ) -> list[k.Effect] | None:
        """What a member that asks for samples is told at once; None: it is idle now, until next_answers has it."""
        name = worker_name(member.worker)
        if self.repeated(member, request) and member.granted is not None:
            return [k.Send(name, member.granted)]
        if member.request is not None and request.number < member.request.number:
            return []  # repeated, and overtaken by the worker's next request
        if member.state == IDLE:
            return [k.Send(name, m.Waiting(member.worker, member.incarnation, waiting))]
        if member.state != COMPUTING:
            return []
        wrong = self.open(request.dataset)
        if wrong:
            return [k.Send(name, m.Refused("LeaseRequest", wrong))]
        assert self.ledger is not None
        member.request, member.leasing, member.granted = request, True, None
        more = self._more(member, members)
        if more is not None:
            return self.answer(member, more)
        if request.epoch > self.ledger.epoch and not self.ledger.done:
            self.take_back(member)  # it broke off the data epoch
        member.state = IDLE
        return None

    def repeated(self, member: Member, request: m.LeaseRequest) -> bool:
        """Whether this request was answered before."""
        granted = member.granted
        return granted is not None and (granted.epoch, granted.number) == (request.epoch, request.number)

    def answer(self, member: Member, lease: Lease | None) -> list[k.Effect]:
        """Tell a member what it asked for: its lease, or (None) that its data epoch is over."""
        assert member.request is not None
        epoch, number = member.request.epoch, member.request.number
        if lease is None:
            member.ended = max(member.ended, epoch)
        member.granted = m.Granted(
            member.worker, member.incarnation, epoch, number, lease, member.clock, member.version
        )
        return [k.Send(worker_name(member.worker), member.granted)]

    def attach(self, member: Member, members: Sequence[Member]) -> Lease | None:
        """The lease that rides along when a member that takes its samples here is released."""
        if self.ledger is None or not member.leasing or member.request is None:
            return None
        if member.request.epoch != self.ledger.epoch:
            return None
        lease = self._grant(member, members)
        mates = [other for other in members if member.shares(other) and other is not member]
        served = any(held.samples for mate in mates for held in mate.leases)
        return self._nothing(member) if lease is None and served else lease

    def settle(self, member: Member, ready: m.Ready) -> tuple[tuple[int, int, int], ...]:
        """The samples of a contribution that is being committed."""
        if self.ledger is None:
            return ()
        member.leases = [lease for lease in member.leases if lease.identity not in ready.leases]
        return self.ledger.commit(member.worker, ready.leases)

    def holds(self, member: Member, ready: m.Ready) -> bool:
        """Whether all samples of a contribution are still its worker's: none was taken back meanwhile."""
        return {lease.identity for lease in member.leases}.issuperset(ready.leases)

    def take_back(self, member: Member) -> None:
        """All that the member holds is free again."""
        member.leases.clear()
        if self.ledger is not None:
            self.ledger.take_back(member.worker)

    def finishers(self, members: Sequence[Member]) -> list[Member]:
        """Idle members that end the data epoch with this entry: they end it with its parameters."""
        if self.ledger is None or not self.ledger.done:
            return []
        return [member for member in members if member.state == IDLE and _epoch(member) <= self.ledger.epoch]

    def next_answers(self, members: Sequence[Member], lockstep: bool, clock: int) -> list[tuple[Member, Lease | None]]:
        """Requests of idle members that can be answered now, in worker order."""
        # The ranks of a group are told together, once all of them ask: a step needs every one of them.
        idle = [member for member in members if all(item.state == IDLE for item in members if member.shares(item))]
        if owed := self._owed(members):
            return owed
        if self.ledger is None or not idle:
            return []
        behind = [member for member in idle if _epoch(member) < self.ledger.epoch]
        if behind:
            return self._deal(behind, members)
        holders = [item for item in members if any(lease.epoch == self.ledger.epoch for lease in item.leases)]
        if not self.ledger.free and all(member in idle for member in holders):
            # Who holds samples still makes them ready with its next step: one at a time, while the others stay,
            # so that someone is there to take them over if that step comes to nothing.
            first = [member for member in idle if any(member.shares(holder) for holder in holders[:1])]
            ended = [member for member in first or idle if _epoch(member) <= self.ledger.epoch]
            if ended:
                return [(member, None) for member in ended]
            self.ledger.advance()
        elif all(member in idle and _epoch(member) > self.ledger.epoch for member in members):
            # All have left this data epoch: broken it off, or ended it before its last holder died.
            self.ledger.advance(keep=any(member.ended >= self.ledger.epoch for member in members))
        if lockstep and any(_undecided(member, clock) for member in members):
            return []
        wanting = [member for member in idle if _epoch(member) == self.ledger.epoch]
        return [(member, lease) for member, lease in self._deal(wanting, members) if lease is not None]

    def _deal(self, asking: Sequence[Member], members: Sequence[Member]) -> list[tuple[Member, Lease | None]]:
        """Samples of the data epoch that each asks for; a rank of a group without any goes on with those that have."""
        dealt = [(member, self._grant(member, members, _epoch(member))) for member in asking]
        served = [member for member, lease in dealt if lease is not None]
        return [
            (member, self._nothing(member) if lease is None and any(map(member.shares, served)) else lease)
            for member, lease in dealt
        ]

    def _owed(self, members: Sequence[Member]) -> list[tuple[Member, Lease | None]]:
        """What ranks of a group wait for whose mates have had it from a coordinator that fell."""
        for member in members:
            mates = [other for other in members if member.shares(other) and other.state != IDLE]
            if self.ledger is None or member.state != IDLE or member.leases or not mates:
                continue
            if any(mate.ended >= _epoch(member) for mate in mates):
                return [(member, None)]
            if any(mate.leases for mate in mates):
                return [(member, self._grant(member, members, _epoch(member)) or self._nothing(member))]
        return []

    def _nothing(self, member: Member) -> Lease:
        assert self.ledger is not None
        member.leases.append(self.ledger.nothing(member.worker, _epoch(member)))
        return member.leases[-1]

    def _more(self, member: Member, members: Sequence[Member]) -> Lease | None:
        """Another lease for a member that has not finished its clock (gradient accumulation)."""
        assert self.ledger is not None
        if _epoch(member) != self.ledger.epoch or not member.leases or member.group:
            return None
        return self._grant(member, members)

    def _grant(self, member: Member, members: Sequence[Member], epoch: int | None = None) -> Lease | None:
        assert self.ledger is not None
        pace = member.pace(members)
        share = pace if self.ledger.dataset.balance and pace < EVEN_SHARE else 1.0
        lease = self.ledger.grant(member.worker, share, epoch)
        if lease is not None:
            member.leases.append(lease)
        return lease


def _epoch(member: Member) -> int:
    return member.request.epoch if member.request is not None else 0


def _undecided(member: Member, clock: int) -> bool:
    """It may still ask for samples of this clock: it computes, holds none, and has no data of its own."""
    return member.state == COMPUTING and member.clock >= clock and not member.leases and not member.own_data
