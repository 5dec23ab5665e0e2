"""What an outsider can know of members and samples, from the coordinator's messages alone.

The books are kept apart from the coordinator's own on purpose: an error there shows as a
difference between the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shoal.vocabulary import Lease, PolicySpec, Switch, TableSpec
from shoal.wire import messages as m

Sample = tuple[int, int]  # data epoch, position
Who = tuple[int, int]  # worker, incarnation


@dataclass
class Seat:
    """One member that takes part: it was released, or waits for samples."""

    worker: int
    incarnation: int
    clock: int = 0  # that it works on: all its contributions before are settled
    asked: m.LeaseRequest | None = None  # the last one
    waits: bool = False  # for samples: policies do not count it
    ended: int = -1  # the last data epoch that it was told is over
    released: int = -1  # the last clock it was released to


@dataclass
class Books:
    """Members by worker, leases by identity, samples by epoch and position."""

    spec: TableSpec
    policy: PolicySpec = field(init=False)  # in force
    level: int = 0  # the clock at which all went on when it changed last
    seats: dict[int, Seat] = field(default_factory=dict)
    leases: dict[int, tuple[Who, Lease]] = field(default_factory=dict)  # granted, not committed or taken back
    granted: dict[int, tuple[Who, Lease]] = field(default_factory=dict)  # all that ever were
    accounted: dict[Sample, int] = field(default_factory=dict)  # -> seq of the commit
    sizes: dict[int, int] = field(default_factory=dict)  # samples of each data epoch that was asked for
    over: set[int] = field(default_factory=set)  # data epochs that some worker was told are over
    log_closes: dict[Who, int] = field(default_factory=dict)  # clock settled, when the last coordinator fell
    log_used: dict[Who, int] = field(default_factory=dict)  # clock of the last contribution combined by then
    resumes: dict[Who, m.Resume] = field(default_factory=dict)
    least: dict[tuple[int, int, int], int] = field(default_factory=dict)  # worker, incarnation, clock -> version

    def __post_init__(self) -> None:
        self.policy = self.spec.policy

    def told(self, message: m.Message) -> None:
        """The coordinator receives this."""
        match message:
            case m.Ready(contributor=who, leases=leases):
                seat = self.seats.get(who.worker)
                current = seat is not None and (seat.incarnation, seat.clock) == (who.incarnation, who.clock)
                if current and not self.leases.keys() >= set(leases):
                    self._take_back((who.worker, who.incarnation))  # its gradient is not used: see none_forgotten
            case m.Resume() as resume:
                self.resumes[resume.worker, resume.incarnation] = resume
            case m.LeaseRequest(worker=worker, incarnation=incarnation, number=number, epoch=epoch):
                seat = self.seats.get(worker)
                self.sizes[epoch] = message.dataset.size
                if seat is None or seat.incarnation != incarnation:
                    return
                if seat.asked is None or number > seat.asked.number:
                    seat.asked, seat.waits = message, True
                    self._give_up((worker, incarnation), epoch)

    def said(self, message: m.Message, new: bool) -> None:
        """The coordinator sends this. new: a commit that is not a repetition."""
        match message:
            case m.Resumed(worker=worker, incarnation=incarnation):
                resume = self.resumes.pop((worker, incarnation), None)
                if resume is not None and resume.version and worker not in self.seats:
                    self._resumed(resume)
            case m.Released(worker=worker, incarnation=incarnation, next_clock=clock, lease=lease):
                seat = self._seat(worker, incarnation)
                seat.clock = max(seat.clock, clock)
                seat.released = max(seat.released, clock)
                self.least.setdefault((worker, incarnation, clock), message.version)
                self._grant((worker, incarnation), lease)
            case m.Granted(worker=worker, incarnation=incarnation, number=number, clock=clock, lease=lease):
                seat = self._seat(worker, incarnation)
                seat.clock = max(seat.clock, clock)
                if seat.asked is not None and number == seat.asked.number:
                    seat.waits = False
                    if lease is None:
                        self.over.add(message.epoch)
                        seat.ended = max(seat.ended, message.epoch)
                self._grant((worker, incarnation), lease)
            case m.Commit() if new:
                self._commit(message)

    def forget(self, log: Sequence[m.Commit]) -> None:
        """The coordinator is gone: only the log is left, until the workers say what they hold."""
        version = len(log)
        self.log_closes = {(worker, incarnation): clock for entry in log for worker, incarnation, clock in entry.closes}
        self.policy, self.level = self.spec.policy, 0
        for switch in [entry.switch for entry in log if entry.switch is not None]:
            self._switch(switch)
        used = (item.contributor for entry in log for item in entry.contributors)
        self.log_used = {(who.worker, who.incarnation): who.clock for who in used}
        self.seats, self.leases = {}, {}
        self.accounted = {sample: seq for sample, seq in self.accounted.items() if seq <= version}
        self.least = {who: least for who, least in self.least.items() if least <= version}
        self.over = {
            epoch for epoch in self.over if all((epoch, at) in self.accounted for at in range(self.sizes.get(epoch, 0)))
        }

    def _resumed(self, resume: m.Resume) -> None:
        """A worker takes its seat again under a new coordinator, with what it holds and is not accounted for."""
        who = (resume.worker, resume.incarnation)
        seat = self._seat(*who)
        closed = self.log_closes.get(who, -1)
        seat.clock = max(closed + 1, resume.clock)
        seat.ended, seat.released, seat.waits = resume.ended, resume.clock, resume.waiting
        if resume.dataset is not None:
            seat.asked = m.LeaseRequest(*who, resume.data_epoch, resume.number, resume.dataset)
        open_clock = max([1, self.level, *(clock + 1 for clock in self.log_closes.values())])
        if closed >= resume.clock:
            seat.clock = max(seat.clock, self.level)
        lockstep = self.policy.kind == "sync"
        late = lockstep and not resume.waiting and resume.clock < open_clock  # what was settled with it is counted
        late = late or (not resume.void and resume.clock <= closed and self.log_used.get(who) != closed)  # dropped
        for lease in resume.leases:
            counted = any(sample in self.accounted for sample in lease_samples(lease))
            held = [self.holder(sample) for sample in lease_samples(lease)]
            later = any(other is not None and other[1].identity > lease.identity for other in held)
            if not (late or counted or later or lease.epoch < resume.data_epoch):
                for other in [other for _, other in (item for item in held if item is not None)]:
                    self.leases.pop(other.identity, None)  # it was given away since
                self.leases[lease.identity] = self.granted[lease.identity] = (who, lease)

    def busy(self) -> list[Seat]:
        """Members that policies count."""
        return [seat for seat in self.seats.values() if not seat.waits]

    def holder(self, sample: Sample) -> tuple[Who, Lease] | None:
        """Who may still commit this sample."""
        epoch, position = sample
        for who, lease in self.leases.values():
            if lease.epoch == epoch and any(start <= position < stop for start, stop in lease.spans):
                return who, lease
        return None

    def _seat(self, worker: int, incarnation: int) -> Seat:
        seat = self.seats.get(worker)
        if seat is None or seat.incarnation < incarnation:
            seat = self.seats[worker] = Seat(worker, incarnation)
        return seat

    def _grant(self, who: Who, lease: Lease | None) -> None:
        if lease is not None and lease.identity not in self.granted:
            self.granted[lease.identity] = self.leases[lease.identity] = (who, lease)

    def _commit(self, commit: m.Commit) -> None:
        for sample in samples(commit.samples):
            self.accounted[sample] = commit.seq
        for worker, incarnation, clock in commit.closes:
            seat = self.seats.get(worker)
            if seat is not None and seat.incarnation == incarnation:
                seat.clock = max(seat.clock, clock + 1)
        for worker, incarnation in commit.fences:
            seat = self.seats.get(worker)
            if seat is not None and seat.incarnation <= incarnation:
                del self.seats[worker]
            self._take_back((worker, incarnation))
        if commit.switch is not None:
            self._switch(commit.switch)
        if commit.kind == "update" and self.policy.kind == "sync":
            closed = {worker for worker, _, _ in commit.closes}
            for seat in self.busy():
                if seat.worker not in closed:  # too late: someone else does its samples
                    self._take_back((seat.worker, seat.incarnation))
        if commit.kind == "cut":
            for worker, incarnation, _ in commit.closes:  # dropped
                self._take_back((worker, incarnation))
        settled = set(samples(commit.samples))
        self.leases = {
            identity: (who, lease)
            for identity, (who, lease) in self.leases.items()
            if not settled.intersection(lease_samples(lease))
        }

    def _switch(self, switch: Switch) -> None:
        """Another policy is in force; whoever is at rest goes on at one clock."""
        self.policy, self.level = switch.policy, switch.clock
        for seat in self.busy():
            seat.clock = max(seat.clock, switch.clock)

    def _give_up(self, who: Who, epoch: int) -> None:
        """Who asks for samples of a later data epoch gives back what it holds of this one."""
        self.leases = {
            identity: held for identity, held in self.leases.items() if held[0] != who or held[1].epoch >= epoch
        }

    def _take_back(self, who: Who) -> None:
        self.leases = {identity: held for identity, held in self.leases.items() if held[0] != who}


def samples(spans: tuple[tuple[int, int, int], ...]) -> Iterator[Sample]:
    """Each sample of what a commit accounts for."""
    for epoch, start, stop in spans:
        for position in range(start, stop):
            yield epoch, position


def lease_samples(lease: Lease) -> Iterator[Sample]:
    return samples(tuple((lease.epoch, start, stop) for start, stop in lease.spans))
