"""A shard: stages blocks, and applies the commit log strictly in order.

What it promises: a block staged twice changes nothing; a commit is applied once, after all before
it; what a worker is sent is the state after exactly `version` commits, and where it reads that in
shared memory it has time to copy it; an older epoch or a fenced incarnation changes nothing. Of several
servers that hold a shard, one leads: it alone takes contributions and serves workers (replica.py).
Numbers are the store's: the shard only names blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.bases import Bases
from shoal.core.journal import Factors, Journal, Kept
from shoal.core.readers import Readers
from shoal.core.registration import Registration
from shoal.core.replica import Replica
from shoal.core.staging import Staging
from shoal.errors import ProtocolError
from shoal.optim import phases
from shoal.placement import owned
from shoal.policy import Policy, from_spec
from shoal.vocabulary import COORDINATOR, TableSpec, Weighted, server_name, worker_name
from shoal.wire import messages as m

SAVED_MAX = 16  # snapshots whose file can still be named to a coordinator that asks again


@dataclass(frozen=True)
class Open:
    """Command: announce this server to the coordinator. version: above 0 if a snapshot was loaded.

    coordinator: its address.
    """

    address: str
    pid: int
    version: int = 0
    coordinator: str = ""
    host: str = ""


@dataclass
class Progress:
    """The commit being worked on: which phases have yet to be measured, and what the others added up to."""

    commit: m.Commit
    remaining: list[str]
    factors: Factors = ()
    norms: m.Norms | None = None  # sent, and waiting for its Factors
    published: set[int] = field(default_factory=set)  # blocks that workers have been sent already


@dataclass
class Shard:
    """The state machine of server `index`, and of the shard that it holds."""

    index: int
    limits: Limits = field(default_factory=Limits)
    epoch: int = 0
    version: int = 0
    spec: TableSpec | None = None
    blocks: tuple[int, ...] = ()
    staging: Staging = field(init=False)
    journal: Journal = field(init=False)
    bases: Bases = field(default_factory=Bases)
    replica: Replica = field(init=False)
    progress: Progress | None = None
    running: k.Task | None = None
    readers: Readers = field(default_factory=Readers)
    writing: bool = False  # a snapshot, beside the log
    saved: dict[int, m.Saved] = field(default_factory=dict)  # files of the last snapshots, by version
    registration: Registration = field(init=False)

    def __post_init__(self) -> None:
        self.staging, self.journal = Staging(self.index), Journal(self.index)
        self.registration = Registration(self.index, self.limits)
        self.replica = Replica(self.index, self.limits)

    def step(self, event: object, now: int) -> list[k.Effect]:
        """Take one event; return what is to be done about it."""
        match event:
            case k.Received(source=source, message=message):
                if source == COORDINATOR:
                    self.registration.silence.heard(now)
                return self._received(message, now) + self._between(now)
            case k.Done() as done:
                return self._done(done) + self._between(now)
            case k.Updated():
                return self._updated(event)
            case k.Written(seq, file, error):
                self.writing = False
                return self._saved(seq, file, error) + self._advance() + self._between(now)
            case k.Tick():
                return self._tick(now)
            case Open(address, pid, version, coordinator, host):
                self.version = version
                return self.registration.begin(m.Register(self.index, address, pid, version, host), coordinator, now)
            case k.Lost(peer) if peer == COORDINATOR:
                self.registration.silence.heard(now)  # it may be gone: another one has all of a lease to take its place
                return []
            case k.Regained(peer) if peer == COORDINATOR and self.registration.register is not None:
                return self.registration.again(self.version, self.replica.shard if self.replica.follows else -1, now)
            case k.Regained(peer, near):
                return self.replica.regained(peer, near) + self._between(now)
            case _:
                return []

    def admits(self, stage: m.Stage) -> bool:
        """Whether the payload of `stage` is wanted; ProtocolError if it names blocks of another shard."""
        who = stage.contributor
        if self.spec is None or self.journal.accounts.settled(who):
            return False
        strange = set(stage.blocks) - set(self.blocks)
        if strange or not stage.blocks:
            raise ProtocolError(
                f"worker {who.worker} pushed blocks {sorted(strange)[:4]} to server {self.index}, which does not "
                f"hold them: it was started with another number of servers"
            )
        return self.staging.lacks(who, stage.blocks)

    def admits_sum(self, forward: m.Forward) -> bool:
        """Whether the payload of `forward` is wanted: it lands where the sum lies that the next commit applies."""
        busy = isinstance(self.running, k.Apply | k.Seed)
        return self.spec is not None and not busy and forward.epoch >= self.epoch and self.replica.lacks(forward)

    def admits_fill(self) -> bool:
        """Whether blocks of this shard can be taken from another server."""
        return self.spec is not None and not isinstance(self.running, k.CreateTable) and not self.replica.leads

    @property
    def policy(self) -> Policy:
        """In force at this version."""
        assert self.spec is not None
        switch = self.journal.accounts.switch
        return from_spec(self.spec.policy if switch is None else switch.policy)

    # --- messages -----------------------------------------------------------------------------

    def _received(self, message: m.Message, now: int) -> list[k.Effect]:
        match message:
            case m.Placed():
                return self._placed(message, now)
            case m.Prepare(epoch=epoch) if epoch >= self.epoch and self.spec is not None:
                self.epoch = epoch
                return self.replica.prepare(message)
            case m.Forward(epoch=epoch) if epoch >= self.epoch and self.spec is not None:
                return self.replica.forwarded(message)
            case m.Fill():
                self.replica.fills.append(message)
                return []
            case m.Filled(server=server, blocks=blocks):
                self.replica.filling.acknowledged(server, blocks, now)
                return []
            case m.Recovered(epoch=epoch) if epoch == self.epoch and self.spec is not None:
                known: k.Effect = k.Send(server_name(message.server), m.Filled(self.index, ()))
                return [known] if self.replica.follows else [known, *self._follow(message)]
            case m.Stage():
                return self._stage(message)
            case m.Await(contributor=who, blocks=blocks) if not self.journal.accounts.settled(who):
                return self.staging.expect(who, blocks)
            case m.Foresee():
                return self._foresee(message)
            case m.Commit():
                return self._commit(message)
            case m.Factors():
                return self._factors(message)
            case m.Pull():
                return self._pull(message)
            case m.Attach(worker=worker, incarnation=incarnation):
                return self._attach(worker, incarnation)
            case m.Copied(worker=worker, incarnation=incarnation, version=version):
                return self._advance() if self.readers.copied(worker, incarnation, version) else []
            case m.Create():
                return self._create(message, now)
            case m.Recover(epoch):
                return self._recover(epoch)
            case m.Registered(epoch) if epoch >= self.epoch:
                self.registration.done, self.epoch = True, epoch
                return []
            case m.Alive(pid=pid):
                self.registration.coordinator_pid = pid
                return []
            case m.Stop(reason):
                return [k.Halt(reason)]
            case m.Refused(what=what, reason=reason) if what == "Register":
                return [k.Halt(reason)]
            case _:
                return []

    def _create(self, create: m.Create, now: int) -> list[k.Effect]:
        if create.epoch < self.epoch:
            return []
        self.epoch = create.epoch
        other = self.replica.shard != create.shard and not self.replica.follows
        if self.spec is not None and not other:
            created = not isinstance(self.running, k.CreateTable)
            return [k.Send(COORDINATOR, m.Created(self.index, self.version))] if created else []
        if self.running is not None:
            return []  # it will be asked again
        self.spec = create.spec
        self.blocks = owned(create.spec, create.shard, create.shards)
        self.replica.begin(create, self.blocks)
        part = self.replica.take_part(now)
        facts = (create.spec, create.shard, create.shards, create.replicated)
        return part + self._run(k.CreateTable(*facts, absent=not create.fresh))

    def _placed(self, placed: m.Placed, now: int) -> list[k.Effect]:
        """Who holds what has changed; this server may be the one that leads now."""
        effects = self.replica.placed(placed, now)
        progress = self.progress
        if self.replica.leads and progress is not None and progress.remaining and progress.norms is None:
            effects += self._compute() if self.running is None else []
        return effects

    def _follow(self, told: m.Recovered) -> list[k.Effect]:
        """The primary says where the log is: this server follows it from here on."""
        self.replica.follows = True
        self.version = told.version
        self.journal.follow(told)
        return [k.Send(COORDINATOR, m.Applied(self.index, self.version)), *self._advance()]

    def _between(self, now: int) -> list[k.Effect]:
        """Between two updates: begin to prepare the next one, give blocks to those that lack them, take them in."""
        effects: list[k.Effect] = []
        if isinstance(self.running, k.Apply | k.Seed | k.CreateTable) or self.spec is None:
            return effects
        effects += self.replica.take_in(self.journal.accounts.updated)
        if self.running is None and self.progress is None:
            effects += self.replica.give(self.version, self.journal.accounts.updated, self._recovered(self.epoch), now)
        guessing = isinstance(self.running, k.Combine) and not self.running.held
        prepare = self.replica.due(self._complete) if self.progress is None else None
        compensation = self._compensation(prepare.contributors) if prepare is not None else None
        if prepare is not None and compensation is None and self.replica.lie_near(prepare):
            effects += self.replica.combined(prepare.contributors, in_place=True)
        elif prepare is not None and guessing:
            effects.append(k.Hurry())
        elif prepare is not None and self.running is None:
            effects += self._run(k.Combine(prepare.contributors, True, compensation))
        return effects

    def _compensation(self, contributors: tuple[Weighted, ...]) -> k.Compensation | None:
        """What is to be made up for in the next update. The server that leads does it for its replicas."""
        wanted = self.policy.compensation
        if wanted is None or not self.replica.leads or any(item.contributor.seeds for item in contributors):
            return None
        # Such a policy commits one by one: these are of one worker, or of one group.
        return self.bases.compensation(wanted, contributors, self.journal.accounts.updated) if contributors else None

    def _complete(self, item: Weighted, count: int) -> bool:
        """Whether all that this contributor has for the shard, so many blocks, is here."""
        who = item.contributor
        return (item.whole and self.readers.shares(who.worker, who.incarnation)) or self.staging.has(who, count)

    def _stage(self, stage: m.Stage) -> list[k.Effect]:
        who = stage.contributor
        if self.spec is None or self.journal.accounts.shuts_out(who.worker, who.incarnation):
            return []
        if not self.journal.accounts.settled(who):
            self.staging.take(who, stage.blocks)
        return [k.Send(worker_name(who.worker), m.Staged(self.index, who, stage.blocks)), *self.staging.completed(who)]

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        if commit.epoch < self.epoch:
            return []
        self.epoch = commit.epoch
        if commit.seq <= self.version:
            repeated = [k.Send(COORDINATOR, self.saved[commit.seq])] if commit.seq in self.saved else []
            return [k.Send(COORDINATOR, m.Applied(self.index, commit.seq)), *repeated]
        if self.progress is not None and self.progress.commit.seq == commit.seq:
            return [k.Send(COORDINATOR, self.progress.norms)] if self.progress.norms is not None else []
        self.journal.pending[commit.seq] = commit
        guessing = isinstance(self.running, k.Combine) and not self.running.held
        return [k.Hurry()] if guessing else self._advance()

    def _foresee(self, foresee: m.Foresee) -> list[k.Effect]:
        """Use the time until the next commit, if there is nothing else to do."""
        busy = self.progress is not None or self.running is not None or bool(self.journal.pending) or self.spec is None
        busy = busy or not self.replica.leads or self.replica.prepared
        # Who took another server's place has yet to be sent what that one had.
        busy = busy or not all(map(self._complete, foresee.contributors, foresee.blocks))
        old = foresee.epoch < self.epoch or any(
            self.journal.accounts.settled(item.contributor) for item in foresee.contributors
        )
        return [] if busy or old else self._run(k.Combine(foresee.contributors))

    def _factors(self, factors: m.Factors) -> list[k.Effect]:
        progress = self.progress
        if factors.epoch < self.epoch or progress is None or self.running is not None:
            return []
        if not progress.remaining or (factors.seq, factors.phase) != (progress.commit.seq, progress.remaining[0]):
            return []
        progress.factors += ((progress.remaining.pop(0), factors.values),)
        progress.norms = None
        return self._compute() + self._advance()

    def _pull(self, pull: m.Pull) -> list[k.Effect]:
        early = pull.version > self.version or not self.replica.leads
        if early or self.journal.accounts.shuts_out(pull.worker, pull.incarnation):
            return []  # not there yet: the commit that releases this worker will publish it
        if pull.version == self.version and not isinstance(self.running, k.Apply | k.Seed):
            blocks = tuple(sorted(set(pull.blocks) & set(self.blocks)))
            return [self._publish(pull.worker, pull.incarnation, blocks)] if blocks else []
        moved = m.Moved(self.index, pull.worker, pull.incarnation, asked=pull.version, version=self.version)
        return [k.Send(worker_name(pull.worker), moved)]

    def _recover(self, epoch: int) -> list[k.Effect]:
        """A new coordinator takes over: tell it what is in the log, as far as it came here."""
        if epoch < self.epoch:
            return []
        self.epoch = epoch
        return [k.Send(COORDINATOR, self._recovered(epoch))]

    def _recovered(self, epoch: int) -> m.Recovered:
        """What this server knows of the log."""
        current = Kept(self.progress.commit, self.progress.factors) if self.progress is not None else None
        spec = self.spec if self.replica.follows else None
        return self.journal.tell(epoch, self.version, spec, current, self.replica.view, self.replica.whole)

    # --- shared memory ------------------------------------------------------------------------

    def _attach(self, worker: int, incarnation: int) -> list[k.Effect]:
        """A worker on this host reads parameters where they lie, and has its gradients read where they lie."""
        forming = self.spec is None or isinstance(self.running, k.CreateTable)
        if forming or self.journal.accounts.shuts_out(worker, incarnation):
            return []  # it will ask again
        self.readers.attach(worker, incarnation)
        return [k.Send(worker_name(worker), m.Attached(self.index, worker, incarnation))]

    def _publish(self, worker: int, incarnation: int, blocks: tuple[int, ...], base: int = 0) -> k.Publish:
        assert self.spec is not None
        still = self.policy.still
        if not still:
            self.readers.begin(worker, incarnation, self.version)
        return k.Publish(worker, incarnation, self.version, blocks, base, still)

    def _updated(self, updated: k.Updated) -> list[k.Effect]:
        """The commit that is being applied is in the log: what is ready of its version need not wait for the rest, on
        its way to workers that do not read it here."""
        progress = self.progress
        if not isinstance(self.running, k.Apply) or self.running.seq != updated.seq or progress is None:
            return []
        if not self.replica.leads or progress.commit.switch is not None:
            return []
        progress.published.update(updated.blocks)
        return [
            k.Publish(worker, incarnation, updated.seq, blocks, base, self.policy.still)
            for worker, incarnation, base in self._released(progress.commit)
            if not self.readers.shares(worker, incarnation)
            and (blocks := self._part(progress.commit, worker, updated.blocks))
        ]

    def _released(self, commit: m.Commit) -> list[tuple[int, int, int]]:
        """Who is to have the version of this commit (worker, incarnation), and the one they were given before."""
        return [(worker, incarnation, self.readers.base(worker, incarnation)) for worker, incarnation in commit.release]

    def _part(self, commit: m.Commit, worker: int, blocks: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the blocks that a worker is given with this commit."""
        assert self.spec is not None
        for other, part, parts in commit.parts:
            if other == worker:
                return tuple(sorted(set(blocks).intersection(owned(self.spec, part, parts))))
        return blocks

    def _held_back(self, commit: m.Commit) -> bool:
        """Whether the commit would change parameters under a worker that copies them, or asks for a second snapshot
        while one is being written."""
        return (bool(self.readers.copying) and bool(commit.contributors)) or (self.writing and bool(commit.save))

    # --- the log ------------------------------------------------------------------------------

    def _advance(self) -> list[k.Effect]:
        """Start the next commit if it is here and nothing else is under way."""
        effects: list[k.Effect] = []
        while self.progress is None and self.running is None and self.replica.follows:
            commit = self.journal.pending.get(self.version + 1)
            if commit is None or self._held_back(commit) or commit.epoch < self.epoch:
                break  # what an older epoch left counts once the new coordinator repeats it
            del self.journal.pending[commit.seq]
            assert self.spec is not None, "a commit cannot come before its table"
            rule_phases = phases.phases(self.spec) if commit.kind == "update" and commit.contributors else ()
            self.progress = Progress(commit, list(rule_phases))
            effects += self._compute()
        return effects

    def _compute(self) -> list[k.Effect]:
        """The next task of the commit in progress, or its end where nothing has to be computed."""
        progress = self.progress
        assert progress is not None
        commit = progress.commit
        summed = self.replica.replicated and not self.replica.in_place
        if commit.contributors and self.replica.replicated and self.replica.sum != commit.contributors:
            return [k.Halt(f"server {self.index} does not hold the sum of commit {commit.seq}, a defect of Shoal")]
        compensation = self._compensation(commit.contributors) if commit.contributors else None
        facts = (commit.contributors, commit.rates, progress.factors, summed, compensation)
        if progress.remaining:
            # Backups have the same numbers, and are told what those of all primaries add up to.
            return self._run(k.Measure(commit.seq, progress.remaining[0], *facts)) if self.replica.leads else []
        if commit.kind == "seed":
            return self._run(k.Seed(commit.seq, commit.contributors[0].contributor, summed))
        if commit.contributors:
            return self._run(k.Apply(commit.seq, *facts))
        return self._finish()

    def _run(self, task: k.Task) -> list[k.Effect]:
        self.running = task
        return [k.Run(task)]

    def _done(self, done: k.Done) -> list[k.Effect]:
        self.running = None
        if done.error and not isinstance(done.task, k.Copy | k.Combine):
            return [k.Halt(f"server {self.index} failed at version {self.version}: {done.error}")]
        match done.task:
            case k.CreateTable():
                return [k.Send(COORDINATOR, m.Created(self.index, self.version))]
            case k.Combine(contributors, held):
                combined = self.replica.combined(contributors, done.error) if held else []
                return combined + self._advance()
            case k.Measure(seq=seq, phase=phase):
                assert self.progress is not None
                self.progress.norms = m.Norms(self.index, seq, phase, done.result)
                return [k.Send(COORDINATOR, self.progress.norms)]
            case k.Seed() | k.Apply():
                return self._finish(done.checksum) + self._advance()
            case k.Copy(seq, _) if done.error:
                return self._saved(seq, "", done.error) + self._advance()
            case k.Copy(seq, path):
                self.writing = True
                return [k.Write(seq, path), *self._advance()]

    def _saved(self, seq: int, file: str, error: str) -> list[k.Effect]:
        """The shard's part of a snapshot is written, or cannot be."""
        self.saved[seq] = m.Saved(self.index, seq, file, error)
        if len(self.saved) > SAVED_MAX:
            del self.saved[min(self.saved)]
        return [k.Send(COORDINATOR, self.saved[seq])]

    def _finish(self, checksum: int = 0) -> list[k.Effect]:
        """The commit is applied: publish the version, settle what it closes, say so."""
        assert self.progress is not None
        commit, factors, published = self.progress.commit, self.progress.factors, self.progress.published
        self.progress = None
        self.version = commit.seq
        self.journal.apply(commit, factors)
        self.bases.add(commit, self.journal.accounts.updated)
        if commit.switch is not None:
            self.readers.given.clear()  # what was on its way when parameters began to change is no base for anything
        rest = tuple(block for block in self.blocks if block not in published)
        effects: list[k.Effect] = []
        for worker, incarnation, base in self._released(commit) if self.replica.leads else ():
            blocks = self._part(commit, worker, self.blocks if self.readers.shares(worker, incarnation) else rest)
            effects += [self._publish(worker, incarnation, blocks, base)] if blocks else []
        self.readers.gave(commit.release, self.version)
        if commit.contributors:
            self.replica.applied()
        self.readers.forget(commit.fences)
        settled = self.staging.settle(self.journal.accounts)
        if commit.closes or commit.fences:
            effects.append(k.Free(settled))
        effects.append(k.Send(COORDINATOR, m.Applied(self.index, self.version, checksum)))
        if commit.save and self.replica.leads:
            effects += self._run(k.Copy(self.version, commit.save))
        return effects

    def _tick(self, now: int) -> list[k.Effect]:
        if overdue := self.registration.overdue(now):
            return [k.Halt(overdue)]
        view = self.replica.view.view if self.replica.view is not None else 0
        effects = self.registration.tick(self.version, view, now)
        if self.readers.late(now, self.limits.copy_ms):
            effects += self._advance()
        return [*effects, *self.replica.tick(now), *self._between(now)]
