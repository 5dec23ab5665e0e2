"""Recovery: how a coordinator of a new epoch learns where the job is.

The log's memory is the servers: each tells what it has applied and which entries it holds besides. An
entry that any of them has is completed on all; one that none has never happened. What only the workers
know, which samples they hold and what they work on, they say themselves; who does not in time is dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from shoal.core import machine as k
from shoal.core.accounts import Accounts
from shoal.core.commit_log import Entry
from shoal.core.membership import COMPUTING, DECLARED, IDLE, PARKED, Member, Server
from shoal.core.replicas import Replicas
from shoal.ledger import Span
from shoal.vocabulary import Lease, TableSpec, server_name
from shoal.wire import messages as m


@dataclass
class Recovery:
    """What has been learnt so far. until: members that have not resumed by then are dead."""

    epoch: int
    answers: dict[int, m.Recovered] = field(default_factory=dict)  # by server
    resumes: dict[int, m.Resume] = field(default_factory=dict)  # by worker
    gone: set[tuple[int, int]] = field(default_factory=set)  # (worker, incarnation) that left, or were succeeded
    holders: set[int] = field(default_factory=set)  # servers that said, when they came, that they hold a shard
    succeeded: set[int] = field(default_factory=set)  # workers that were started again
    accounts: Accounts | None = None  # of the whole log, once it is known
    until: int = 0
    asked_at: int = 0

    def answered(self, recovered: m.Recovered) -> None:
        """Take a server's answer."""
        if recovered.epoch == self.epoch and self.accounts is None:
            self.answers[recovered.server] = recovered

    def silent(self, first: int) -> list[int]:
        """Servers that have a place and did not answer. first: how many a job begins with."""
        views = [answer.placed for answer in self.answers.values() if answer.placed is not None]
        placed = set(range(first))
        if views:
            placed = {server for chain in max(views, key=lambda view: view.view).chains for server in chain}
        return sorted(placed - self.answers.keys())

    def patience_ms(self, servers: Mapping[int, Server], replicas: Replicas, lease_ms: int, now: int) -> int:
        """How long servers are waited for: half as long where others have all that silent ones have."""
        lacking = self.silent(replicas.first)
        silent_ms = [now - servers[index].heard_at for index in lacking if index in servers]
        gone = self._enough(replicas) and min(silent_ms, default=lease_ms) >= lease_ms // 2
        return lease_ms // 2 if gone else lease_ms

    def ask_again(self, servers: Collection[int], resend_ms: int, now: int) -> list[k.Effect]:
        """Ask those that have not answered, now and then."""
        if self.accounts is not None or now - self.asked_at < resend_ms:
            return []
        self.asked_at = now
        return [
            k.Send(server_name(index), m.Recover(self.epoch)) for index in sorted(servers) if index not in self.answers
        ]

    def _enough(self, replicas: Replicas) -> bool:
        """Whether every shard is whole on some server that has answered."""
        views = [answer.placed for answer in self.answers.values() if answer.placed is not None]
        chains = max(views, key=lambda view: view.view).chains if views else replicas.chains
        whole = {
            server
            for server, answer in self.answers.items()
            if answer.whole and answer.spec is not None and answer.version >= self.stable
        }
        return all(whole.intersection(chain) for chain in chains)

    @property
    def spec(self) -> TableSpec | None:
        """The job's table; None: it had not begun."""
        found = [answer.spec for answer in self.answers.values() if answer.spec is not None]
        return found[0] if found and self.version > 0 else None

    @property
    def stable(self) -> int:
        """Every server that had a place has applied the entries up to this one."""
        return max((entry.stable for answer in self.answers.values() for entry in answer.entries), default=0)

    @property
    def version(self) -> int:
        """The last entry that some server has, and all before it: one behind a gap never happened either."""
        known = self._known()
        last = max((answer.version for answer in self.answers.values()), default=0)
        while last + 1 in known:
            last += 1
        return last

    def entries(self, servers: Collection[int]) -> list[Entry]:
        """What some of these servers have not applied, in order, as entries of this epoch."""
        versions = {server: answer.version for server, answer in self.answers.items() if server in servers}
        known = self._known()
        found: list[Entry] = []
        for seq in range(min(versions.values()) + 1, self.version + 1):
            lacking = {server for server, version in versions.items() if version < seq}
            entry = Entry(msgspec.structs.replace(known[seq], epoch=self.epoch, since=self.version), lacking)
            for answer in self.answers.values():
                for other, phase, values in answer.factors:
                    if other == seq:
                        entry.factors[phase] = m.Factors(self.epoch, seq, phase, values)
            found.append(entry)
        return found

    def _known(self) -> dict[int, m.Commit]:
        return valid([entry for answer in self.answers.values() for entry in answer.entries])

    def learn(self) -> Accounts:
        """Add up the whole log: what the foremost server has applied, and the entries after that."""
        foremost = max(self.answers.values(), key=lambda answer: answer.version)
        self.accounts = Accounts.of(foremost)
        for seq, commit in sorted(self._known().items()):
            if foremost.version < seq <= self.version:
                self.accounts.add(commit)
        return self.accounts

    def resume(self, resume: m.Resume) -> None:
        """A worker says how far it is; of two lives of one rank the later one counts."""
        known = self.resumes.get(resume.worker)
        if known is not None and known.incarnation != resume.incarnation:
            self.gone.add((resume.worker, min(known.incarnation, resume.incarnation)))
        if known is None or known.incarnation <= resume.incarnation:
            self.resumes[resume.worker] = resume

    def succeed(self, worker: int) -> None:
        """Another process has taken this rank: whatever life of it there was is over."""
        self.succeeded.add(worker)

    @property
    def heard(self) -> set[tuple[int, int]]:
        """(worker, incarnation) of those that said how far they are."""
        return {(resume.worker, resume.incarnation) for resume in self.resumes.values()}

    def living(self) -> list[m.Resume]:
        """Those that go on, in worker order."""
        return [resume for _, resume in sorted(self.resumes.items()) if not self._over(resume)]

    def missing(self) -> set[tuple[int, int]]:
        """(worker, incarnation) of those that had parameters, and have not said a word yet."""
        assert self.accounts is not None
        heard = self.heard | self.gone
        expected = {who for who in self.accounts.released.items() if not self._fenced(*who)}
        return {who for who in expected - heard if who[0] not in self.succeeded}

    def awaited(self, first: int) -> str:
        """What the new coordinator still has to hear, in words. first: how many servers a job begins with."""
        if self.accounts is None:
            return f"servers {self.silent(first)} have yet to tell the new coordinator what they know of the log"
        return f"workers {sorted(worker for worker, _ in self.missing())} have yet to say what they hold"

    def dead(self) -> set[tuple[int, int]]:
        """(worker, incarnation) of those that do not go on, and are not shut out yet."""
        assert self.accounts is not None
        over = {(resume.worker, resume.incarnation) for resume in self.resumes.values() if self._over(resume)}
        started_again = {who for who in self.accounts.released.items() if who[0] in self.succeeded}
        return {who for who in over | self.gone | self.missing() | started_again if not self._fenced(*who)}

    def _over(self, resume: m.Resume) -> bool:
        """Whether it left, was shut out, or was succeeded by another life of its rank."""
        assert self.accounts is not None
        worker, incarnation = resume.worker, resume.incarnation
        succeeded = worker in self.succeeded or incarnation < self.accounts.released.get(worker, -1)
        return succeeded or (worker, incarnation) in self.gone or self._fenced(worker, incarnation)

    def _fenced(self, worker: int, incarnation: int) -> bool:
        assert self.accounts is not None
        return self.accounts.shuts_out(worker, incarnation)

    def clock(self) -> int:
        """The open clock: after all that are settled, and where the foremost worker is."""
        assert self.accounts is not None
        settled = (clock + 1 for _, clock in self.accounts.closed.values())
        return max([1, self._level, *settled, *(resume.clock for resume in self.living())])

    @property
    def _level(self) -> int:
        """The clock at which all who were at rest went on when the policy changed last."""
        assert self.accounts is not None
        return 0 if self.accounts.switch is None else self.accounts.switch.clock

    def member(self, resume: m.Resume, now: int, clock: int, lockstep: bool) -> Member:
        """The member that this worker is: at work on its clock, done with it and waiting for parameters, or without
        samples."""
        assert self.accounts is not None
        member = Member(resume.worker, resume.incarnation, resume.nonce, resume.pid, now, version=resume.version)
        member.group = resume.group
        if not resume.version:
            if self.accounts.released.get(resume.worker) == resume.incarnation:
                member.state = DECLARED  # it counts already: its first parameters are on their way
            return member
        closed = self.accounts.closed.get(resume.worker, (-1, -1))
        settled = closed >= (resume.incarnation, resume.clock)
        member.state, member.clock = (PARKED, max(closed[1] + 1, self._level)) if settled else (COMPUTING, resume.clock)
        member.settled = resume.clock if settled else resume.clock - 1
        if resume.waiting:
            member.state = IDLE
        member.dropped = settled and not resume.void and self.accounts.used.get(resume.worker) != closed
        member.started_at, member.ended = now, resume.ended
        if lockstep and member.state in (PARKED, IDLE):
            member.clock = max(member.clock, clock)
        # Its clock was settled without it, and its samples were taken back.
        late = member.dropped or (lockstep and member.state == COMPUTING and member.clock < clock)
        kept = [lease for lease in resume.leases if self._keeps(resume, lease)]
        member.leases = [] if late else [lease for lease in kept if lease.spans or not settled]
        if resume.dataset is not None:
            member.leasing = True
            member.request = m.LeaseRequest(
                resume.worker, resume.incarnation, resume.data_epoch, resume.number, resume.dataset
            )
        return member

    def _keeps(self, resume: m.Resume, lease: Lease) -> bool:
        """Whether the samples are still the worker's: neither committed, nor given up, nor leased to another since."""
        assert self.accounts is not None
        later = [
            span
            for other in self.living()
            for item in other.leases
            if item.epoch == lease.epoch and item.identity > lease.identity
            for span in item.spans
        ]
        taken = [*self.accounts.spans.get(lease.epoch, []), *later]
        return lease.epoch >= resume.data_epoch and not any(overlap(mine, taken) for mine in lease.spans)


def valid(entries: Sequence[m.Commit]) -> dict[int, m.Commit]:
    """By sequence number, without what a coordinator sent whose successor did not find it."""
    newest: dict[int, m.Commit] = {}
    for entry in sorted(entries, key=lambda entry: entry.epoch):
        newest = {seq: older for seq, older in newest.items() if older.epoch == entry.epoch or seq <= entry.since}
        newest[entry.seq] = entry
    return newest


def overlap(one: Span, others: Iterable[Span]) -> bool:
    """Whether any sample of the one is in the others."""
    return any(one[0] < stop and start < one[1] for start, stop in others)
