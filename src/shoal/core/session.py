"""A session: one worker's side of every exchange.

What it promises the training thread: each contribution is staged completely before it is made
ready; parameters are handed over only as one version, complete; whatever is lost on the way is
asked for again, and every wait ends by its deadline with a reason. One command is under way at a
time (Push, Restart and Tell apart, which wait for nothing, and Snapshot, which is written beside); `parked` says which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.arrival import Arrival
from shoal.core.backoff import Backoff
from shoal.core.commands import Await, Begin, Declare, Finish, Leave, Push, Restart, Snapshot, Take, Tell
from shoal.core.couriers import Couriers
from shoal.core.leases import Leases
from shoal.core.recollection import Recollection
from shoal.core.silence import Silence, blame
from shoal.core.snapshot import Snapshots
from shoal.placement import owned
from shoal.policy import from_spec
from shoal.vocabulary import COORDINATOR, Contributor, Dataset, TableSpec, node_number, server_name
from shoal.wire import messages as m
from shoal.wire.forming import NOTHING

# What drivers need: the session, and all that it can be told to do.
__all__ = ["Await", "Begin", "Declare", "Finish", "Leave", "Push", "Restart", "Session", "Snapshot", "Take", "Tell"]

WAITS_FOR = {  # what a deadline error says of each parked state
    "join": "a place in the job",
    "declare": "the table to be created",
    "start": "the initial parameters",
    "step": "its contribution to be committed and fresh parameters to arrive",
    "lease": "samples",
    "leave": "leave to go",
}
FORMING = ("join", "declare", "start")  # parked in one of these, a worker does not compute yet
RECEIVING = ("start", "step", "lease")  # parked in one of these, the bound memory may be written


@dataclass
class Session:
    """The state machine of one worker."""

    limits: Limits = field(default_factory=Limits)
    worker: int = -1
    incarnation: int = -1
    clock: int = 0
    version: int = 0
    attempt: int = 0
    spec: TableSpec | None = None
    group: tuple[tuple[int, int], ...] = ()  # (worker, incarnation) of all its ranks, by part; (): this worker is alone
    part: frozenset[int] = frozenset()  # blocks of which it pushes gradients and is given parameters: alone, all
    parked: str = ""  # a key of WAITS_FOR, or "" while the training thread computes
    request: m.Message | None = None  # what the coordinator still has to answer
    asked: m.Message | None = None  # the same, kept until the training thread goes on: a new coordinator is asked again
    epoch: int = 0  # the coordinator's
    nonce: int = 0
    pid: int = 0
    finish: Finish | None = None  # given, and waiting for the last blocks to be staged
    finishing: Finish | None = None  # the same, until its step is over
    released: m.Released | None = None
    early: bool = False  # the first release came before the training thread waited for it
    granted: m.Granted | None = None
    leases: Leases = field(default_factory=Leases)
    snapshots: Snapshots = field(init=False)
    recollection: Recollection = field(default_factory=Recollection)
    pace: float = 1.0  # its speed by the fastest worker's, as the coordinator said last
    still: bool = False  # parameters do not change while it computes, by the last that came
    used: tuple[int, int] = NOTHING  # the last contribution of an earlier life that is in the log
    seeds: bool = False  # it was told to push the initial parameters
    arrival: Arrival = field(default_factory=Arrival)
    couriers: Couriers = field(init=False)
    asking: Backoff = field(init=False)  # the request, while it is not answered
    pulling: Backoff = field(init=False)  # parameters, while none arrive
    parked_at: int = 0
    beat_at: int = 0
    reason: str = ""  # the coordinator's last word on what it waits for
    coordinator: str = ""  # its address
    coordinator_pid: int = 0
    silence: Silence = field(init=False)  # the coordinator's
    dead: bool = False

    def __post_init__(self) -> None:
        self.asking = Backoff(self.limits.resend_ms)
        self.pulling = Backoff(self.limits.resend_ms)
        self.couriers = Couriers(self.limits)
        self.snapshots = Snapshots(self.limits)
        self.silence = Silence(self.limits)

    def step(self, event: object, now: int) -> list[k.Effect]:
        """Take one command or event; return what is to be done about it."""
        if self.dead:
            return []
        match event:
            case k.Received(source=source, message=message):
                return self._received(source, message, now)
            case k.Tick():
                return self._tick(now)
            case k.Regained(peer, near):
                return self._regained(peer, near, now)
            case k.Lost(peer):  # the driver dials again; Regained follows
                if peer == COORDINATOR and self.incarnation >= 0:
                    self.silence.heard(now)  # it may be gone: another one has all of a lease to take its place
                return []
            case k.Retained(seq, file):
                self.recollection.written(seq, file)
                return self._recalled()
            case Push(blocks):
                who = self._identity()
                mine = [block for block in blocks if block in self.part or who.seeds]
                return self.couriers.push(mine, who, now)
            case Restart():
                self.attempt += 1
                self.couriers.forget()
                return []
            case Finish():
                self.finish = self.finishing = event
                self._park("step", now)
                flushed = self.couriers.flush(self._identity(), now)
                return flushed + self._offer() + self._make_ready(now)
            case Take(dataset, epoch):
                return self._take(dataset, epoch, now)
            case Begin(rank, nonce, pid, coordinator):
                self.coordinator, self.nonce, self.pid = coordinator, nonce, pid
                return self._ask("join", m.Join(rank, nonce, pid), now)
            case Declare(spec, near, group):
                self.spec, self.group, self.still = spec, group, from_spec(spec.policy).still
                self.couriers.near = set(near)
                return self._ask("declare", self._declaration(), now)
            case Await():
                # What was released before the thread waited was passed over: ask for it again at once.
                return self._ask("start", self._declaration(), now)
            case Snapshot(path, keep):
                return self.snapshots.ask(self.worker, self.incarnation, path, keep, now)
            case Tell(figures):
                return [k.Send(COORDINATOR, m.Report(self.worker, self.incarnation, figures))]
            case Leave():
                return self._ask("leave", m.Leave(self.worker, self.incarnation), now)
            case _:
                raise TypeError(f"a session does not know {event!r}")

    def admits(self, parameters: m.Parameters) -> bool:
        """Whether these blocks may land in the bound memory: only while the training thread waits."""
        return self._lacks(parameters) and self.arrival.fits(parameters)

    def _lacks(self, parameters: m.Parameters) -> bool:
        """Whether the training thread waits for these blocks."""
        shard = self.couriers.shard_of(parameters.server)
        return (
            self.parked in RECEIVING
            and parameters.incarnation == self.incarnation
            and self.couriers.gives(shard)
            and (parameters.stamp > 0) == (shard in self.couriers.near)
            and parameters.version > self.version
            and self.arrival.lacks(parameters.version, parameters.blocks)
        )

    # --- commands -----------------------------------------------------------------------------

    def _park(self, state: str, now: int) -> None:
        self.parked, self.parked_at, self.reason, self.asked = state, now, "", None
        self.pulling.start(now)

    def _ask(self, state: str, request: m.Message, now: int) -> list[k.Effect]:
        """Send a request to the coordinator, and again until it is answered."""
        if state:
            self._park(state, now)
        self.request = self.asked = request
        self.asking.start(now)
        return [k.Send(COORDINATOR, request)]

    def _declaration(self) -> m.Declare:
        assert self.spec is not None
        return m.Declare(self.worker, self.incarnation, self.spec, self.group)

    def _identity(self) -> Contributor:
        return Contributor(self.worker, self.incarnation, self.clock, self.attempt)

    def _take(self, dataset: Dataset, epoch: int, now: int) -> list[k.Effect]:
        lease = self.leases.take(dataset, epoch)
        if lease is not None:
            return [k.Leased(lease)]
        self.granted = None
        return self._ask("lease", self.leases.request(self.worker, self.incarnation), now)

    # --- messages -----------------------------------------------------------------------------

    def _received(self, source: str, message: m.Message, now: int) -> list[k.Effect]:
        if source == COORDINATOR and self.incarnation >= 0:
            self.silence.heard(now)
        match message:
            case m.Alive(pid=pid):
                self.coordinator_pid = pid
                return []
            case m.Placed():
                return self.couriers.move(message)
            case m.Staged(contributor=who, server=server, blocks=blocks):
                if who == self._identity():
                    self.couriers.acknowledged(server, blocks, now)
                return self._make_ready(now)
            case m.Parameters():
                return self._parameters(message, now)
            case m.Welcome(nonce=nonce):
                return self._welcome(message, now) if self._answers(m.Join, nonce=nonce) else []
            case m.Refused(what=what, reason=reason):
                return self._fail("RefusedError", f"{source} refused {what}: {reason}")
            case m.Stop(reason=reason):
                forming = self.version == 0 and self.parked in FORMING
                return self._fail("StartupError" if forming else "JobError", reason or "the job was ended")
            case m.Moved(incarnation=incarnation, asked=asked) if incarnation == self.incarnation:
                stale = asked == self.arrival.version and self.parked in RECEIVING
                refresh = m.Refresh(self.worker, self.incarnation, asked)
                return [k.Send(COORDINATOR, refresh)] if stale else []
        if getattr(message, "incarnation", None) != self.incarnation:
            return []  # meant for another life of this worker
        match message:
            case m.Declared(seed=seed, used=used):
                self.used = used
                return self._declared(seed, now)
            case m.Attached(server=server):
                return self._attached(self.couriers.shard_of(server))
            case m.Introduce(epoch=epoch):
                return self._introduce(epoch, now)
            case m.Resumed(epoch=epoch):
                return self._resumed(epoch, now)
            case m.Released():
                return self._released(message, now)
            case m.Granted():
                return self._granted(message, now)
            case m.Waiting(reason=reason):
                self.reason = reason
                return []
            case m.Left() | m.Fenced() if self.parked == "leave":
                self.dead = True  # either way it is no longer a member, as it wished
                return [k.Departed()]
            case m.Fenced(reason=reason):
                return self._fail("FencedError", reason)
            case m.SnapshotDone():
                return self.snapshots.done(message)
            case m.Recall():
                return [*self.recollection.asks(message, self.parked == "lease"), *self._recalled()]
            case _:
                return []

    def _recalled(self) -> list[k.Effect]:
        """Tell what snapshots asked for, as far as it is known."""
        answers = self.recollection.answers(self.parked == "lease")
        return [k.Send(COORDINATOR, m.Recalled(self.worker, self.incarnation, *answer)) for answer in answers]

    def _introduce(self, epoch: int, now: int) -> list[k.Effect]:
        """Tell a new coordinator how far this worker is. What the one before promised is void: it moves no further
        until the new one says how."""
        if epoch < self.epoch:
            return []
        if epoch > self.epoch:
            self._ask_again(now)
        leases = self.leases
        resume = m.Resume(
            self.worker,
            self.incarnation,
            self.nonce,
            self.pid,
            self.clock,
            self.version,
            leases.all,
            leases.dataset,
            leases.epoch,
            leases.number,
            leases.ended,
            self.finishing is not None and (self.finishing.void or not self.finishing.samples),
            self.parked == "lease",
            self.group,
        )
        return [k.Send(COORDINATOR, resume)]

    def _resumed(self, epoch: int, now: int) -> list[k.Effect]:
        """Another coordinator leads: what the one before promised and did not give is asked for again."""
        if epoch <= self.epoch:
            return []
        self.epoch = epoch
        self._ask_again(now)
        return [k.Send(COORDINATOR, self.request)] if self.request is not None else []

    def _ask_again(self, now: int) -> None:
        """Forget what was promised; what was asked is asked again, now and then, until it is answered."""
        self.released = self.granted = None
        if not self.arrival.arrived:
            self.arrival.close(self.version)  # of what was announced nothing may ever come
        if self.parked and self.asked is not None:
            if self.version == 0 and self.spec is not None and self.parked != "leave":
                # Its seed may be in the log or not: either way it joins as if it came late.
                self.asked = self._declaration()
            self.request = self.asked
            self.asking.start(now)

    def _answers(self, kind: type[m.Message], **facts: object) -> bool:
        """Whether the request under way is of this kind and has these facts."""
        request = self.request
        return isinstance(request, kind) and all(getattr(request, name) == value for name, value in facts.items())

    def _welcome(self, welcome: m.Welcome, now: int) -> list[k.Effect]:
        self.worker, self.incarnation = welcome.worker, welcome.incarnation
        self.parked, self.request, self.asked, self.beat_at, self.epoch = "", None, None, now, welcome.epoch
        self.silence.heard(now)
        return self.couriers.begin(welcome.placed)

    def _attached(self, shard: int) -> list[k.Effect]:
        """A server reads gradients where they lie; one that has taken another's place is told what lies there."""
        if not self.couriers.attached(shard):
            return []
        if self.parked == "declare":
            return self._formed()
        return self.couriers.resend(shard, self._identity()) + self._pull_again(shard)

    def _declared(self, seed: bool, now: int) -> list[k.Effect]:
        if self.version > 0 or self.spec is None or self.parked not in ("declare", "start"):
            return []
        self.seeds = self.seeds or seed
        if self.parked == "start":
            return [k.Seeding(True)] if seed else []
        if self.couriers.every:
            return []
        self.couriers.lay_out(self.spec, now)
        part = self.group.index((self.worker, self.incarnation)) if self.group else 0
        self.part = self.arrival.blocks = frozenset(owned(self.spec, part, max(1, len(self.group))))
        return self.couriers.attach(self._identity()) or self._formed()

    def _formed(self) -> list[k.Effect]:
        """The table exists, and all memory is shared: the training thread may go on."""
        if self.parked != "declare" or not self.couriers.every or self.couriers.unattached:
            return []
        self.parked = ""
        # The request stays: repeating Declare is how a worker that does not seed asks for its release.
        return [k.Seeding(self.seeds)]

    def _released(self, released: m.Released, now: int) -> list[k.Effect]:
        if released.clock != self.clock or self.parked not in ("start", "step"):
            self.early = self.early or (self.parked in ("", "declare") and self.version == 0)
            return []
        if self.released is None or released.version > self.released.version:
            self.released, self.request, self.pulling.since = released, None, now
            self.arrival.expect(released.version)
            if self.early:
                # Its parameters came as early, and had nowhere to land.
                self.early = False
                return [*self._pull(range(len(self.couriers.servers))), *self._settle()]
        return self._settle()

    def _granted(self, granted: m.Granted, now: int) -> list[k.Effect]:
        if self.parked != "lease" or not self.leases.answered(granted):
            return []
        if self.granted is None or granted.version > self.granted.version:
            self.granted, self.request, self.pulling.since = granted, None, now
            self.arrival.expect(granted.version)
        return self._settle()

    def _parameters(self, parameters: m.Parameters, now: int) -> list[k.Effect]:
        effects: list[k.Effect] = []
        shard = self.couriers.shard_of(parameters.server)
        if shard in self.couriers.near and not parameters.still:
            # Wanted or not, they are not read any more: the server need not wait.
            copied = m.Copied(self.worker, self.incarnation, parameters.version)
            effects.append(k.Send(server_name(parameters.server), copied))
        if not self._lacks(parameters):
            return effects
        if not self.arrival.fits(parameters):
            # What they change is not here: some of what this server sent before was lost, or another one sent it.
            self.arrival.expect(parameters.version)
            self.pulling.start(now)
            return effects + self._pull([shard])
        self.still = parameters.still
        self.arrival.take(parameters)
        self.pulling.start(now)
        return effects + self._settle()

    # --- going on -----------------------------------------------------------------------------

    def _offer(self) -> list[k.Effect]:
        """Let servers that are far away tell the coordinator themselves what they have staged."""
        if self.finish is None or not self.finish.far or not self.couriers.unacknowledged:
            return []
        return [k.Send(COORDINATOR, m.Offer(self._ready(self.finish)))]

    def _make_ready(self, now: int) -> list[k.Effect]:
        """Tell the coordinator, once every block of a finished clock is acknowledged."""
        if self.finish is None or self.couriers.unacknowledged:
            return []
        done, self.finish = self.finish, None
        return self._ask("", self._ready(done), now)

    def _ready(self, done: Finish) -> m.Ready:
        facts = (done.samples, done.leases, done.rates, done.multiplier, done.void)
        whole, counts = self.couriers.whole, self.couriers.counts
        return m.Ready(self._identity(), *facts, whole, counts, self.version, done.steps)

    def _settle(self) -> list[k.Effect]:
        """Let the training thread go on if all that it waits for has arrived."""
        match self.parked:
            case "start" | "step" if self.released is not None and self.arrival.complete(self.released.version):
                released, self.released = self.released, None
                self.version, self.clock, self.attempt = self.arrival.version, released.next_clock, 0
                self.finish, self.pace = None, released.pace
                self.leases.settled(self.finishing.leases if self.finishing is not None else (), released.lease)
                self.couriers.forget()
                self._unpark()
                return [k.Fresh(self.version, self.clock, released.committed)]
            case "lease" if self.granted is not None and (
                self.arrival.complete(self.granted.version)
                or (self.granted.version <= self.version and not self.arrival.arrived)
            ):
                granted, self.granted = self.granted, None
                if self.arrival.arrived:
                    self.version = self.arrival.version
                self.clock, self.attempt = granted.clock, 0
                self._unpark()
                self.leases.took(granted.lease)
                return [k.Leased(granted.lease)]
            case _:
                return []

    def _unpark(self) -> None:
        self.parked, self.request, self.asked = "", None, None
        self.arrival.close(self.version)

    def _fail(self, kind: str, text: str) -> list[k.Effect]:
        self.dead = True
        return [k.Failed(kind, text)]

    # --- time ---------------------------------------------------------------------------------

    def _tick(self, now: int) -> list[k.Effect]:
        if self.parked and now - self.parked_at >= self._patience_ms():
            return self._fail("DeadlineError", self._overdue(now))
        silent_ms = self.silence.too_long_ms(now)
        if silent_ms is not None:
            who = f"worker {self.worker}, at clock {self.clock},"
            return self._fail("JobError", blame(who, self.coordinator, self.coordinator_pid, silent_ms))
        effects: list[k.Effect] = []
        if now - self.beat_at >= self.limits.heartbeat_ms:
            effects += self._beat(now)
        if self.parked and self.request is not None and self.asking.due(now):
            effects.append(k.Send(COORDINATOR, self.request))
        effects += self.snapshots.tick(now) + self._recalled() + self.couriers.tick(self._identity(), now)
        if self._awaited() and self.pulling.due(now):
            effects += self._pull(range(len(self.couriers.servers)))
        return effects

    def _beat(self, now: int) -> list[k.Effect]:
        """A sign of life. The driver fills in the bytes: they are counted where they flow."""
        if self.incarnation < 0:
            return []
        self.beat_at = now
        view = self.couriers.placed.view if self.couriers.placed is not None else 0
        heartbeat = m.Heartbeat(f"worker/{self.worker}", self.incarnation, 0, 0, self.version, view)
        return [k.Send(COORDINATOR, heartbeat)]

    def _regained(self, peer: str, near: bool, now: int) -> list[k.Effect]:
        """A connection is back: repeat at once what its loss may have swallowed."""
        if peer == COORDINATOR:
            again = [k.Send(COORDINATOR, self.request)] if self.parked and self.request is not None else []
            return [*again, *self._beat(now)]  # it may be a new one, and must know of this worker soon
        shard, who = self.couriers.shard_of(node_number(peer)), self._identity()
        repeated = self.couriers.reached(shard, near, self.finishing is not None, who, now)
        return repeated + self._pull_again(shard)

    def _pull_again(self, shard: int) -> list[k.Effect]:
        """What is awaited from the server that leads this shard."""
        return self._pull([shard]) if self._awaited() and 0 <= shard < len(self.couriers.every) else []

    def _awaited(self) -> bool:
        """Whether parameters are announced, and the training thread waits for them."""
        return bool(self.parked) and (self.released is not None or self.granted is not None)

    def _pull(self, shards: Iterable[int]) -> list[k.Effect]:
        """Ask the servers that lead these shards for the blocks of the arriving version that are missing."""
        assert self.spec is not None
        effects: list[k.Effect] = []
        for shard in shards:
            missing = self.arrival.missing(owned(self.spec, shard, len(self.couriers.servers)))
            if missing and self.couriers.gives(shard):
                pull = m.Pull(self.worker, self.incarnation, self.arrival.version, missing)
                effects.append(k.Send(server_name(self.couriers.servers[shard]), pull))
        return effects

    def _patience_ms(self) -> int:
        forming = self.parked in FORMING
        return self.limits.start_ms + self.limits.connect_ms if forming else self.limits.wait_ms

    def _overdue(self, now: int) -> str:
        who = f"worker {self.worker}" if self.worker >= 0 else "this worker"
        waited = (now - self.parked_at) / 1000
        state = self.couriers.awaited() or self.reason or "the coordinator did not say why"
        return (
            f"{who} waited {waited:.0f} s at clock {self.clock} for {WAITS_FOR[self.parked]}: {state}. "
            f"`shoal status` shows who is missing; SHOAL_WAIT_MS sets how long to wait"
        )
