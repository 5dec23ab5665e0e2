"""The coordinator: hears everybody, and lets the part decide whose matter it is: how a job forms (formation.py,
admission.py) and goes on (course.py), who goes (departures.py, failover.py), how another one takes over (recovery.py).

What they promise together: the log is the only way anything changes; a contribution enters it at most once
and only when it is staged on every shard; a worker goes on only with a version the policy allows;
every sample of a data epoch is in exactly one entry. It holds no numbers of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.config import Job
from shoal.core import machine as k
from shoal.core.accounts import spans_of
from shoal.core.admission import Admission
from shoal.core.commit_log import CommitLog
from shoal.core.course import Course
from shoal.core.departures import Departures, bereft
from shoal.core.dispatch import Dispatch
from shoal.core.failover import Failover
from shoal.core.formation import Formation
from shoal.core.membership import COMPUTING, DECLARED, JOINED, Member, Membership, Server
from shoal.core.offers import Offers
from shoal.core.proposal import Proposals
from shoal.core.recovery import Recovery
from shoal.core.regime import Regime
from shoal.core.release import Releases
from shoal.core.replicas import Replicas
from shoal.core.saving import Samples, Savings
from shoal.core.silence import Watch
from shoal.core.status import status
from shoal.core.unit import Units
from shoal.vocabulary import Contributor, PolicySpec, TableSpec, node_number, server_name, worker_name
from shoal.wire import messages as m

FORMING, RECOVERING, RUNNING, STOPPED = "forming", "recovering", "running", "stopped"

NUMBERS_PER_EPOCH = 1 << 20  # incarnations and leases: those of a later epoch are above those of an earlier one


@dataclass
class Coordinator:
    """The state machine of a job."""

    job: Job
    epoch: int = 1
    clock_at_start: int = 0  # above 0 when the job goes on from a snapshot
    samples: Samples = (None, ())  # in the log before that
    recovers: bool = False  # the job may be under way: take over from a coordinator of an older epoch
    pid: int = 0
    stopped: bool = False
    dispatch: Dispatch = field(default_factory=Dispatch)
    membership: Membership = field(init=False)
    units: Units = field(init=False)
    replicas: Replicas = field(init=False)
    formation: Formation = field(init=False)
    log: CommitLog = field(init=False)
    releases: Releases = field(init=False)
    savings: Savings = field(init=False)
    proposals: Proposals = field(init=False)
    offers: Offers = field(init=False)
    failover: Failover = field(init=False)
    departures: Departures = field(init=False)
    watch: Watch = field(init=False)
    recovery: Recovery = field(init=False)
    regime: Regime = field(default_factory=Regime)
    course: Course = field(init=False)
    admission: Admission = field(init=False)
    started_at: int | None = None
    leads_until: int | None = None  # by this node's clock, as a registry has it; None: for as long as it lives
    deposed: bool = False  # another one leads, or may: this one is over, the job is not
    kept_view: int = 0  # of the placement, last given to the registry

    def __post_init__(self) -> None:
        self.membership = Membership(self.job.limits)
        self.units = Units(self.membership.members)
        self.replicas = Replicas(self.job.servers, self.job.replicas)
        self.formation = Formation(self.job, self.epoch, self.membership, self.replicas)
        self.log = CommitLog(self.epoch, self.job.servers, self.replicas.servers)
        self.releases = Releases(self.log, self.membership, self.dispatch)
        self.savings = Savings(self.job.servers)
        self.proposals = Proposals(self.epoch, self.log, self.replicas)
        self.offers = Offers(self.membership, self.replicas)
        places = (self.membership, self.replicas, self.formation)
        self.failover = Failover(self.job, *places, self.log, self.proposals, self.offers, self.savings)
        people = (self.formation, self.membership, self.units)
        self.departures = Departures(self.job.name, *people, self.dispatch, self.log, self.proposals, self.savings)
        entries = (self.log, self.releases, self.proposals)
        self.course = Course(*people, self.replicas, self.dispatch, *entries, self.regime)
        self.admission = Admission(self.job, self.clock_at_start + 1, *people, self.replicas, *entries, self.course)
        self.watch = Watch(self.job.limits)
        self.recovery = Recovery(self.epoch)
        dataset, accounted = self.samples
        self.dispatch.resume(spans_of(accounted), dataset)
        if self.recovers:
            self.membership.incarnations = self.first_number

    @property
    def phase(self) -> str:
        """Where the job is, in a word that users see."""
        if self.stopped:
            return STOPPED
        if self.course.begun:
            return RUNNING
        return RECOVERING if self.recovers else FORMING

    @property
    def first_number(self) -> int:
        """Of incarnations and leases that are this epoch's own."""
        return self.epoch * NUMBERS_PER_EPOCH if self.recovers else 0

    @property
    def spec(self) -> TableSpec | None:
        """The job's table, once a worker has declared it."""
        return self.formation.spec

    @property
    def over(self) -> bool:
        """The job is over, and not only this coordinator: it was stopped, or everybody has left."""
        left = self.phase == RUNNING and not self.membership.members and self.membership.parted
        return left or (self.phase == STOPPED and not self.deposed)

    def step(self, event: object, now: int) -> list[k.Effect]:
        """Take one event; return what is to be done about it."""
        if self.started_at is None:
            self.started_at = now
        if self.phase == STOPPED:
            return []
        if self.leads_until is not None and now >= self.leads_until:
            # First of all: who was stopped or cut off for that long must do nothing more.
            return self._deposed(f"the registry has not renewed its lease for {now - self.leads_until} ms too long")
        return self._take(event, now) + self._keep()

    def _take(self, event: object, now: int) -> list[k.Effect]:
        match event:
            case k.Received(source=source, message=message):
                return self._received(source, message, now)
            case k.Leads(until):
                self.leads_until = max(until, self.leads_until or 0)
                return []
            case k.Deposed(reason):
                return self._deposed(reason)
            case k.Tick():
                return self._tick(now)
            case k.Lost(peer):
                self.membership.connection(peer, now)
                return []
            case k.Regained(peer):
                self.membership.connection(peer, None)
                return []
            case k.Recorded(version, error):
                return self.savings.recorded(version, error)
            case _:
                return []

    def _deposed(self, reason: str) -> list[k.Effect]:
        """Say nothing more to anyone: the job goes on under another coordinator."""
        self.stopped = self.deposed = True
        return [k.Halt(f"the coordinator of epoch {self.epoch} leads job {self.job.name} no more: {reason}")]

    def _keep(self) -> list[k.Effect]:
        """What the registry is to know of who holds what."""
        if self.phase != RUNNING or self.kept_view == self.replicas.view:
            return []
        self.kept_view = self.replicas.view
        return [k.Keep(self.replicas.placed(self.membership.servers.values()))]

    # --- messages -----------------------------------------------------------------------------

    def _received(self, source: str, message: m.Message, now: int) -> list[k.Effect]:
        match message:
            case m.Register(server=index, holds=holds) if self.phase == RECOVERING:
                if holds >= 0:
                    self.recovery.holders.add(index)
                    if self.recovery.accounts is not None and self.replicas.shard(index) < 0:
                        self.replicas.gone.add(index)  # the log goes on without it: what it holds is out of date
                return [*self.formation.register(message, now), k.Send(source, m.Recover(self.epoch))]
            case m.Register(server=index, holds=holds):
                if self.phase == RUNNING and holds >= 0 and index not in self.membership.servers:
                    self.replicas.gone.add(index)  # what it holds may be out of date
                registered = self.formation.register(message, now)
                if index not in self.membership.servers:
                    return registered  # it was refused
                came = self.failover.came(index) if self.phase == RUNNING else []
                return [*registered, *self.failover.remind(source, 0), *self.log.repeat(index), *came]
            case m.Recovered() if self.phase == RECOVERING:
                return self._recovered(message, now)
            case m.Resume():
                return self._resume(source, message, now)
            case m.Join():
                return self._join(source, message, now)
            case m.Created() | m.Applied() | m.Norms() | m.Saved() | m.Held() | m.Whole() | m.Complete():
                return self._from_server(message, now) if message.server in self.membership.servers else []
            case m.StatusRequest():
                return [k.Send(source, status(self, now))]
            case m.Drain(what) if self.phase == RUNNING:
                return self.failover.drain(source, what) + self.course.decide(now)
            case m.SetPolicy(policy):
                return self._set_policy(source, policy, now)
            case m.Drain():
                return [k.Send(source, m.Draining((), f"job {self.job.name} is {self.phase}: ask again when it runs"))]
            case m.Heartbeat(name=name) if name != source:
                return []  # its sender has just taken another name
            case m.Heartbeat(name=name) if name.startswith("server/"):
                server = self.membership.servers.get(node_number(name))
                if server is None:
                    gone = node_number(name) in self.replicas.gone
                    return [k.Send(source, m.Stop("others do its part: start another server"))] if gone else []
                server.heard_at, server.received, server.sent = now, message.received, message.sent
                server.view = message.view
                return [k.Send(source, m.Alive(self.pid)), *self.failover.remind(source, message.view)]
        return self._from_worker(source, message, now)

    def _from_server(
        self,
        message: m.Created | m.Applied | m.Norms | m.Saved | m.Held | m.Whole | m.Complete,
        now: int,
    ) -> list[k.Effect]:
        """Messages of a server that is known."""
        leads = self.replicas.leads(message.server)
        match message:
            case m.Created(server=server, version=version):
                if self.phase == RUNNING:
                    return self.failover.created(server) + self.course.decide(now)
                begun, end = self.admission.created(server, version, now)
                return self._stop(end) if end else begun + self.course.decide(now)
            case m.Applied():
                return self._applied(message, now)
            case m.Whole(server=server):
                return self.failover.whole(server) + self.course.decide(now)
            case m.Held():
                if not self.proposals.held(message):
                    return []
                return self.admission.held(now) if self.phase == FORMING else self.course.held(now)
            case m.Norms() if leads >= 0 and self.spec is not None:
                return self.log.norms(message, leads, self.spec)
            case m.Saved() if leads >= 0 and self.spec is not None:
                return self.savings.saved(message, leads, self.spec)
            case m.Complete(contributor=who) if leads >= 0:
                return self._complete(who, leads, now)
            case _:
                return []

    def _applied(self, applied: m.Applied, now: int) -> list[k.Effect]:
        server = self.membership.servers[applied.server]
        busy = not self.proposals.free
        self.log.applied(applied.server, applied.seq, now)
        server.version = max(server.version, applied.seq)
        if self.replicas.shard(applied.server) < 0 or self.phase != RUNNING:
            return []
        joined = self.failover.join_created()
        wrong = self.failover.differs(applied)
        if wrong is not None:
            reason = f"its checksum of version {applied.seq} is not its primary's: its memory, or its processor, errs"
            return joined + self._lost(wrong, reason, now)
        return joined + (self.course.decide(now) if busy and self.proposals.free and self.replicas.replicated else [])

    def _from_worker(self, source: str, message: m.Message, now: int) -> list[k.Effect]:
        """Messages that say which incarnation of a worker they are from."""
        worker = getattr(message, "worker", None)
        incarnation = getattr(message, "incarnation", -1)
        match message:
            case m.Ready(contributor=who) | m.Offer(ready=m.Ready(contributor=who)):
                worker, incarnation = who.worker, who.incarnation
            case m.Heartbeat(name=name):
                worker = node_number(name)
        if worker is None:
            return []
        member = self.membership.find(worker, incarnation)
        if member is None:
            return self._from_stranger(source, message, (worker, incarnation), now)
        member.heard_at = now
        if self.phase == RECOVERING and not isinstance(message, m.Heartbeat | m.Leave):
            return []  # it will ask again
        return self._from_member(source, message, member, now)

    def _from_stranger(self, source: str, message: m.Message, who: tuple[int, int], now: int) -> list[k.Effect]:
        """It is not a member any more, or one that a new coordinator has yet to hear of."""
        if isinstance(message, m.Leave):
            left: k.Effect = k.Send(source, m.Left(*who))
            if self.phase != RECOVERING:
                return [left]
            self.recovery.gone.add(who)
            return [left, *self._take_over(now)]
        if self.phase == RECOVERING and who in self.recovery.heard:
            return []  # it will be told
        if self.recovers and who[1] < self.first_number:
            return [k.Send(source, m.Introduce(*who, self.epoch))]
        return [k.Send(source, self.departures.fenced(*who))]

    def _from_member(self, source: str, message: m.Message, member: Member, now: int) -> list[k.Effect]:
        """Messages that only a living member may send."""
        match message:
            case m.Declare():
                return self._declare(member, message, now)
            case m.Ready():
                return self._ready(member, message, now)
            case m.Offer():
                return self.offers.offered(member, message.ready)
            case m.Refresh():
                return self.releases.refresh(member, message, now)
            case m.LeaseRequest():
                return self._lease_request(member, message, now)
            case m.SnapshotRequest():
                return self._snapshot(message, now)
            case m.Recalled():
                return self.savings.recalled(message, self.spec) if self.spec is not None else []
            case m.Leave():
                gone = self._remove(member, f"worker {member.worker} left", now, parted=True)
                return [k.Send(source, m.Left(member.worker, member.incarnation)), *gone]
            case m.Report(figures=figures):
                member.figures.update(figures)
                return []
            case m.Heartbeat(received=received, sent=sent, version=version):
                member.received, member.sent = received, sent
                member.version = max(member.version, version)
                member.view = message.view
                return [k.Send(source, m.Alive(self.pid)), *self.failover.remind(source, message.view)]
            case _:
                return []

    # --- forming the job ----------------------------------------------------------------------

    def _join(self, source: str, join: m.Join, now: int) -> list[k.Effect]:
        if self.phase == RECOVERING:
            if join.rank < 0:
                return []  # which places are free will be known soon
            self.recovery.succeed(join.rank)
        effects: list[k.Effect] = []
        member = self.membership.holder(join)
        if member is not None and member.nonce != join.nonce:
            # A second life under the same rank: the first one is over, whatever its connection says.
            effects += self._remove(member, f"worker {member.worker} was started again", now)
            member = None
        if member is None:
            member = self.membership.join(join, now)
        member.heard_at, member.broken_at = now, None
        return effects + self.formation.welcome(member, source)

    def _declare(self, member: Member, declare: m.Declare, now: int) -> list[k.Effect]:
        wrong = self.formation.declare(declare.spec)
        if wrong:
            return [k.Send(worker_name(member.worker), m.Refused("Declare", wrong))]
        if member.state == JOINED:
            member.state, member.group = DECLARED, declare.group
            if len(self.units.of(member)) < len(member.group):
                return self._remove(member, bereft(member, "has gone"), now)
        return self.admission.declared(member, now)

    # --- taking over --------------------------------------------------------------------------

    def _recovered(self, recovered: m.Recovered, now: int) -> list[k.Effect]:
        """A server has told what it knows; once all have, the log is known, and goes on."""
        self.recovery.answered(recovered)
        return [] if self.recovery.silent(self.replicas.first) else self._learn(now)

    def _go_without(self, now: int) -> list[k.Effect]:
        """Some servers did not answer in time: what the others know has to do."""
        recovery, limits = self.recovery, self.job.limits
        if self.replicas.replicated and recovery.answers:
            return self._learn(now)
        return self._stop(
            f"servers {recovery.silent(self.replicas.first)} did not come back to the coordinator of epoch "
            f"{self.epoch} within {limits.lease_ms / 1000:g} s (SHOAL_LEASE_MS): resume job {self.job.name} from its "
            f"last snapshot"
        )

    def _learn(self, now: int) -> list[k.Effect]:
        """The log is what the servers that answered know of it; those that have a place and did not are gone."""
        recovery = self.recovery
        if recovery.accounts is not None:
            return []
        if recovery.spec is None:
            return self._stop(f"the coordinator of job {self.job.name} died before the job began: start it again")
        silent = recovery.silent(self.replicas.first)
        outdated = silent + self.replicas.recover(recovery.answers.values(), recovery.stable)
        outdated += [index for index in sorted(recovery.holders) if self.replicas.shard(index) < 0]
        if self.replicas.lost:
            return self._stop(
                f"shards {self.replicas.lost} were lost while the coordinator was: no server that answered the one of "
                f"epoch {self.epoch} has all of them; resume job {self.job.name} from its last snapshot"
            )
        accounts = recovery.learn()
        recovery.until = now + self.job.limits.lease_ms
        self.formation.recover(recovery.spec)
        self.regime.recover(accounts)
        self.log.servers = self.replicas.servers
        effects = self.log.recover(recovery.version, accounts, recovery.entries(self.log.servers), now)
        ahead = [resume for resume in recovery.resumes.values() if not self._knows(resume)]
        if ahead:
            return self._behind(ahead[0])  # also where its rank has a new life by now: it was acknowledged
        for server in sorted(set(outdated)):
            self.replicas.gone.add(server)
            self.membership.servers.pop(server, None)
            effects.append(k.Send(server_name(server), m.Stop("what it holds is out of date: start it again")))
        return [*self.failover.announce(), *effects, *self._take_over(now)]

    def _resume(self, source: str, resume: m.Resume, now: int) -> list[k.Effect]:
        """A worker says how far it is: one that is known, one of an older epoch, or one that is dead."""
        worker, incarnation = resume.worker, resume.incarnation
        member = self.membership.members.get(worker)
        if member is not None and member.incarnation == incarnation:
            member.heard_at = now
            return [k.Send(source, m.Resumed(worker, incarnation, self.epoch))] if self.phase == RUNNING else []
        if self.phase == RECOVERING and member is None:
            self.recovery.resume(resume)
            return self._take_over(now) if self._knows(resume) else self._behind(resume)
        if self._begins(resume):
            self.membership.adopt(self.recovery.member(resume, now, self.course.clock, self.course.lockstep))
            return [k.Send(source, m.Resumed(worker, incarnation, self.epoch))]
        # Its place is lost. What it has staged, and may stage yet, is shut out.
        self.log.fence(worker, incarnation)
        effects: list[k.Effect] = [k.Send(source, self.departures.fenced(worker, incarnation))]
        return effects + (self.releases.append(self.log.cut(), [], now) if self.phase == RUNNING else [])

    def _begins(self, resume: m.Resume) -> bool:
        """Whether it had joined and no more when the coordinator before was lost: nobody waited for it, and it has
        neither parameters nor anything staged, so it may begin now."""
        free = self.phase == RUNNING and self.recovers and resume.worker not in self.membership.members
        return free and not (resume.version or resume.group or self.log.shuts_out(resume.worker, resume.incarnation))

    def _behind(self, resume: m.Resume) -> list[k.Effect]:
        """A worker has seen more of the log than there is."""
        return self._stop(
            f"worker {resume.worker} has version {resume.version} of job {self.job.name}, and the servers that the "
            f"coordinator of epoch {self.epoch} found know of {self.log.version}: too many were lost at once; "
            f"resume it from its last snapshot"
        )

    def _knows(self, resume: m.Resume) -> bool:
        """Whether the log, as far as it is known again, has all that this worker has seen of it."""
        return self.recovery.accounts is None or resume.version <= self.log.version

    def _take_over(self, now: int) -> list[k.Effect]:
        """Begin to decide, once the log is known and every worker has resumed, or is taken for dead."""
        recovery = self.recovery
        if self.phase != RECOVERING or recovery.accounts is None or (recovery.missing() and now < recovery.until):
            return []
        self.course.begin(max(recovery.clock(), self.clock_at_start + 1))
        for worker, incarnation in sorted(recovery.dead()):
            self.log.fence(worker, incarnation)
        clock, lockstep = self.course.clock, self.course.lockstep
        adopted = [recovery.member(resume, now, clock, lockstep) for resume in recovery.living()]
        self.membership.members.update({member.worker: member for member in adopted})
        self.membership.empty_at = None if self.membership.members else now
        self.dispatch.recover(recovery.accounts.spans, adopted, self.first_number)
        effects: list[k.Effect] = [
            k.Log(
                f"the coordinator of epoch {self.epoch} goes on at version {self.log.version}, "
                f"with {len(adopted)} workers"
            )
        ]
        for member in adopted:
            if why := self.units.torn(member):
                effects += self.departures.expel(member, bereft(member, why), now)
        if self.log.fences:
            effects += self.releases.append(self.log.cut(), [], now)
        effects += [
            k.Send(worker_name(member.worker), m.Resumed(member.worker, member.incarnation, self.epoch))
            for member in adopted
            if self.membership.find(member.worker, member.incarnation) is member
        ]
        if declared := self.formation.declared():
            effects += self.course.admit(declared, now)
        return effects + self.failover.refill() + self.course.decide(now)

    # --- while the job runs -------------------------------------------------------------------

    def _ready(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        if self.phase == FORMING:
            return self.admission.ready(member, ready, now)
        if member.bereft and member.state == COMPUTING and ready.contributor.clock == member.clock:
            return self._remove(member, member.bereft, now)
        return self.course.ready(member, ready, now)

    def _complete(self, who: Contributor, shard: int, now: int) -> list[k.Effect]:
        ready = self.offers.complete(who, shard)
        return [] if ready is None else self._ready(self.membership.members[who.worker], ready, now)

    def _lease_request(self, member: Member, request: m.LeaseRequest, now: int) -> list[k.Effect]:
        if member.bereft and not self.dispatch.repeated(member, request):
            return self._remove(member, member.bereft, now)
        return self.course.lease(member, request, now)

    def _set_policy(self, source: str, wanted: PolicySpec, now: int) -> list[k.Effect]:
        """Somebody wants another policy: it takes over now, or once workers have come to rest."""
        if self.phase == RUNNING:
            return self.course.change(source, wanted, now)
        wrong = f"job {self.job.name} is {self.phase}: ask again when it runs"
        return [k.Send(source, m.PolicySet(None, error=wrong))]

    def _snapshot(self, request: m.SnapshotRequest, now: int) -> list[k.Effect]:
        again = self.savings.again(request, self.replicas.primaries)
        if again is not None:
            return again
        if self.phase != RUNNING:
            return self.savings.refuse(request, f"the job has not begun: {self.formation.missing()}")
        entry = self.log.cut(save=request.path)
        workers = [(member.worker, member.incarnation) for member in self.membership.ordered()]
        recalled = self.course.clock if self.course.lockstep else 0
        # The clocks that are over: a resumed job begins at the next.
        facts = (request, entry, self.course.clock - 1, self.dispatch.samples)
        return [*self.log.append(entry, now), *self.savings.begin(*facts, workers, recalled, self.log.used, now)]

    def _remove(self, member: Member, why: str, now: int, parted: bool = False) -> list[k.Effect]:
        """The member is gone, and its group with it: the rest go on."""
        effects = self.departures.remove(member, why, now, parted)
        if self.phase == RUNNING:
            effects += self.releases.append(self.log.cut(), [], now) + self.course.decide(now)
        return effects

    # --- time ---------------------------------------------------------------------------------

    def _tick(self, now: int) -> list[k.Effect]:
        limits = self.job.limits
        assert self.started_at is not None
        if self.watch.slept(now):
            self.membership.excuse(now)
            self.started_at = now
        if self.phase == RECOVERING and self.recovery.accounts is None:
            patience_ms = self.recovery.patience_ms(self.membership.servers, self.replicas, limits.lease_ms, now)
            if now - self.started_at >= patience_ms:
                return self._go_without(now)
        if self.phase == FORMING and now - self.started_at >= limits.start_ms:
            return self._stop(
                f"job {self.job.name} did not start within {limits.start_ms / 1000:g} s: {self.formation.missing()}"
            )
        effects: list[k.Effect] = []
        for server, reason in self.membership.dead_servers(now) if self.phase != RECOVERING else ():
            effects += self._lost(server, reason, now)
            if self.phase == STOPPED:
                return effects
        empty_at = self.membership.empty_at
        if self.phase == RUNNING and empty_at is not None and now - empty_at >= limits.empty_ms:
            if self.membership.parted:
                return self._stop("")  # the last one left politely: the job is over
            return self._stop(f"job {self.job.name} had no worker for {limits.empty_ms / 1000:g} s")
        for member, reason in self.membership.dead(now):
            if self.membership.find(member.worker, member.incarnation) is None:
                continue  # it has gone with another of its group
            effects += self._remove(member, f"worker {member.worker} is declared dead: {reason}", now)
        if self.phase == FORMING:
            effects += self.formation.create_again(now)
        if self.phase == RECOVERING:
            asked = self.recovery.ask_again(self.membership.servers, limits.resend_ms, now)
            effects += asked if self.recovery.accounts is None else self._take_over(now)
        if self.course.impatient:
            effects += self.course.decide(now)
        effects += self.course.foresee() + self.log.resend(now, limits.resend_ms)
        effects += self.savings.resend(now, limits.resend_ms)
        if self.phase == RUNNING:
            effects += self.failover.create_again(now)
        return effects + self.proposals.resend(now, limits.resend_ms)

    def _lost(self, server: Server, why: str, now: int) -> list[k.Effect]:
        """A server is gone: others that hold its shard go on, if there are any."""
        placed = self.replicas.shard(server.index) >= 0
        effects, end = self.failover.lost(server, why)
        if placed and self.phase == FORMING:
            who = f"server {server.index} (process {server.pid} on {server.host})"
            return self._stop(f"{who} died at version {server.version}, before the job began: start it again")
        if not end:
            return effects + self.course.decide(now)
        lack = "no other server has all of its shard" if self.replicas.replicated else "without replicas"
        return self._stop(f"{end}; {lack}: its parameters are gone: resume the job from its last snapshot")

    def _stop(self, reason: str) -> list[k.Effect]:
        """End the job for everyone."""
        self.stopped = True
        names = [worker_name(member.worker) for member in self.membership.ordered()]
        names += [server_name(index) for index in sorted(self.membership.servers)]
        return [*(k.Send(name, m.Stop(reason)) for name in names), k.Halt(reason)]
