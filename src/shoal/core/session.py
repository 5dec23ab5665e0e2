"""A session: one worker's side of every exchange.

What it promises the training thread: each contribution is staged completely before it is made
ready; parameters are handed over only as one version, complete; whatever is lost on the way is
asked for again, and every wait ends by its deadline with a reason. One command is under way at a
time (Push and Report apart); `parked` says which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core import machine as k
from shoal.placement import cut, owned
from shoal.vocabulary import COORDINATOR, ITEM_BYTES, Contributor, Dataset, Lease, TableSpec, server_name
from shoal.wire import messages as m

# --- commands of the training thread ------------------------------------------------------------


@dataclass(frozen=True)
class Begin:
    """Join the job. rank -1: any. nonce: a fresh random number for every life of the process."""

    rank: int
    nonce: int
    pid: int


@dataclass(frozen=True)
class Declare:
    spec: TableSpec


@dataclass(frozen=True)
class Await:
    """Wait for the initial parameters (after Seeding, and after pushing the seed if asked to)."""


@dataclass(frozen=True)
class Push:
    """These blocks' gradients are computed and will not change until the step is over."""

    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Restart:
    """Forget what was pushed for this clock; everything will be pushed again as a new attempt."""


@dataclass(frozen=True)
class Finish:
    """Everything of this clock is pushed: make it ready, and wait for fresh parameters."""

    samples: int
    leases: tuple[int, ...]
    rates: tuple[float, ...]
    multiplier: float = 1.0
    void: bool = False


@dataclass(frozen=True)
class Take:
    """Wait for the next lease of data epoch `epoch`."""

    dataset: Dataset
    epoch: int


@dataclass(frozen=True)
class Snapshot:
    path: str


@dataclass(frozen=True)
class Tell:
    figures: dict[str, float]


@dataclass(frozen=True)
class Leave:
    pass


WAITS_FOR = {  # what a deadline error says of each parked state
    "join": "a place in the job",
    "declare": "the table to be created",
    "start": "the initial parameters",
    "step": "its contribution to be committed and fresh parameters to arrive",
    "lease": "samples",
    "snapshot": "the snapshot to be written",
    "leave": "leave to go",
}
FORMING = ("join", "declare", "start")  # parked in one of these, a worker does not compute yet


@dataclass
class Courier:
    """Blocks pushed to one server and not yet acknowledged."""

    gathered: list[int] = field(default_factory=list)  # waiting to fill a frame
    gathered_bytes: int = 0
    unacknowledged: set[int] = field(default_factory=set)
    quiet_since: int = 0
    backoff_ms: int = 0


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
    servers: tuple[str, ...] = ()
    parked: str = ""  # a key of WAITS_FOR, or "" while the training thread computes
    request: m.Message | None = None  # what the coordinator still has to answer
    finish: Finish | None = None  # given, and waiting for the last blocks to be staged
    released: m.Released | None = None
    early: bool = False  # the first release came before the training thread waited for it
    granted: m.Granted | None = None
    spare: Lease | None = None  # came with a release, not yet taken
    number: int = 0  # leases asked for
    data_epoch: int = 0
    snapshots: int = 0  # asked for
    arriving: int = 0  # the version whose blocks are arriving
    arrived: set[int] = field(default_factory=set)
    couriers: list[Courier] = field(default_factory=list)
    server_of: list[int] = field(default_factory=list)  # block -> server
    parked_at: int = 0
    asked_at: int = 0
    backoff_ms: int = 0
    progress_at: int = 0  # when parameters last arrived
    pull_backoff_ms: int = 0
    beat_at: int = 0
    reason: str = ""  # the coordinator's last word on what it waits for
    dead: bool = False

    def step(self, event: object, now: int) -> list[k.Effect]:
        """Take one command or event; return what is to be done about it."""
        if self.dead:
            return []
        match event:
            case k.Received(source=source, message=message):
                return self._received(source, message, now)
            case k.Tick():
                return self._tick(now)
            case k.Regained(peer):
                return self._regained(peer, now)
            case k.Lost():
                return []  # the driver dials again; Regained follows
            case Push(blocks):
                return self._push(blocks, now)
            case Restart():
                return self._restart()
            case Finish():
                self.finish = event
                self._park("step", now)
                return self._flush(now) + self._make_ready(now)
            case Take(dataset, epoch):
                return self._take(dataset, epoch, now)
            case Begin(rank, nonce, pid):
                return self._ask("join", m.Join(rank, nonce, pid), now)
            case Declare(spec):
                self.spec = spec
                return self._ask("declare", m.Declare(self.worker, self.incarnation, spec), now)
            case Await():
                # What was released before the thread waited was passed over: ask for it again at once.
                assert self.spec is not None
                return self._ask("start", m.Declare(self.worker, self.incarnation, self.spec), now)
            case Snapshot(path):
                self.snapshots += 1
                request = m.SnapshotRequest(self.worker, self.incarnation, self.snapshots, path)
                return self._ask("snapshot", request, now)
            case Tell(figures):
                return [k.Send(COORDINATOR, m.Report(self.worker, self.incarnation, figures))]
            case Leave():
                return self._ask("leave", m.Leave(self.worker, self.incarnation), now)
            case _:
                raise TypeError(f"a session does not know {event!r}")

    def admits(self, parameters: m.Parameters) -> bool:
        """Whether these blocks may land in the bound memory: only while the training thread waits."""
        return (
            self.parked in ("start", "step", "lease")
            and parameters.incarnation == self.incarnation
            and parameters.version > self.version
            and parameters.version >= self.arriving
            and not (parameters.version == self.arriving and self.arrived.issuperset(parameters.blocks))
        )

    # --- commands -----------------------------------------------------------------------------

    def _park(self, state: str, now: int) -> None:
        self.parked, self.parked_at, self.progress_at = state, now, now
        self.pull_backoff_ms, self.reason = self.limits.resend_ms, ""

    def _ask(self, state: str, request: m.Message, now: int) -> list[k.Effect]:
        """Send a request to the coordinator, and again until it is answered."""
        if state:
            self._park(state, now)
        self.request, self.asked_at, self.backoff_ms = request, now, self.limits.resend_ms
        return [k.Send(COORDINATOR, request)]

    def _identity(self) -> Contributor:
        return Contributor(self.worker, self.incarnation, self.clock, self.attempt)

    def _push(self, blocks: tuple[int, ...], now: int) -> list[k.Effect]:
        assert self.spec is not None
        effects: list[k.Effect] = []
        every = cut(self.spec)
        for index in blocks:
            courier = self.couriers[self.server_of[index]]
            courier.gathered.append(index)
            courier.gathered_bytes += every[index].elements * ITEM_BYTES[self.spec.tensors[every[index].tensor].dtype]
            if courier.gathered_bytes >= self.limits.frame_bytes_target:
                effects += self._post(self.server_of[index], now)
        return effects

    def _flush(self, now: int) -> list[k.Effect]:
        return [effect for server in range(len(self.couriers)) for effect in self._post(server, now)]

    def _post(self, server: int, now: int) -> list[k.Effect]:
        """Send what is gathered for a server as one frame."""
        courier = self.couriers[server]
        if not courier.gathered:
            return []
        if not courier.unacknowledged:
            courier.quiet_since, courier.backoff_ms = now, self.limits.resend_ms
        blocks = tuple(courier.gathered)
        courier.unacknowledged.update(blocks)
        courier.gathered, courier.gathered_bytes = [], 0
        return [k.Send(server_name(server), m.Stage(self._identity(), blocks))]

    def _restart(self) -> list[k.Effect]:
        self.attempt += 1
        self.couriers = [Courier() for _ in self.servers]
        return []

    def _take(self, dataset: Dataset, epoch: int, now: int) -> list[k.Effect]:
        self.data_epoch = epoch
        self.number += 1
        if self.spare is not None and self.spare.epoch == epoch:
            lease, self.spare = self.spare, None
            return [k.Leased(lease)]
        self.granted, self.spare = None, None
        request = m.LeaseRequest(self.worker, self.incarnation, epoch, self.number, dataset)
        return self._ask("lease", request, now)

    # --- messages -----------------------------------------------------------------------------

    def _received(self, source: str, message: m.Message, now: int) -> list[k.Effect]:
        match message:
            case m.Staged(contributor=who, shard=shard, blocks=blocks):
                if who == self._identity() and shard < len(self.couriers):
                    courier = self.couriers[shard]
                    courier.unacknowledged.difference_update(blocks)
                    courier.quiet_since, courier.backoff_ms = now, self.limits.resend_ms
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
                stale = asked == self.arriving and self.parked in ("start", "step", "lease")
                refresh = m.Refresh(self.worker, self.incarnation, asked)
                return [k.Send(COORDINATOR, refresh)] if stale else []
        if getattr(message, "incarnation", None) != self.incarnation:
            return []  # meant for another life of this worker
        match message:
            case m.Declared(seed=seed):
                return self._declared(seed, now)
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
            case m.SnapshotDone(number=number, path=path, version=version, error=error):
                if not self._answers(m.SnapshotRequest, number=number):
                    return []
                self.parked, self.request = "", None
                return [k.Snapshotted(path, version, error)]
            case _:
                return []

    def _answers(self, kind: type[m.Message], **facts: object) -> bool:
        """Whether the request under way is of this kind and has these facts."""
        request = self.request
        return isinstance(request, kind) and all(getattr(request, name) == value for name, value in facts.items())

    def _welcome(self, welcome: m.Welcome, now: int) -> list[k.Effect]:
        self.worker, self.incarnation, self.servers = welcome.worker, welcome.incarnation, welcome.servers
        self.couriers = [Courier() for _ in self.servers]
        self.parked, self.request, self.beat_at = "", None, now
        return [k.Dial(welcome.servers)]

    def _declared(self, seed: bool, now: int) -> list[k.Effect]:
        if self.version > 0 or self.spec is None or self.parked not in ("declare", "start"):
            return []
        first = self.parked == "declare"
        if first:
            self.server_of = [0] * len(cut(self.spec))
            for server in range(len(self.servers)):
                for block in owned(self.spec, server, len(self.servers)):
                    self.server_of[block] = server
            self.parked = ""
        if not seed and not first:
            return []
        # The request stays: repeating Declare is how a worker that does not seed asks for its release.
        return [k.Seeding(seed)]

    def _released(self, released: m.Released, now: int) -> list[k.Effect]:
        if released.clock != self.clock or self.parked not in ("start", "step"):
            self.early = self.early or (not self.parked and self.version == 0)
            return []
        if self.released is None or released.version > self.released.version:
            self.released, self.request, self.progress_at = released, None, now
            self._expect(released.version)
            if self.early:
                # Its parameters came as early, and had nowhere to land.
                self.early = False
                return [*self._pull(range(len(self.servers))), *self._settle(now)]
        return self._settle(now)

    def _granted(self, granted: m.Granted, now: int) -> list[k.Effect]:
        if self.parked != "lease" or (granted.epoch, granted.number) != (self.data_epoch, self.number):
            return []
        if self.granted is None or granted.version > self.granted.version:
            self.granted, self.request, self.progress_at = granted, None, now
            self._expect(granted.version)
        return self._settle(now)

    def _expect(self, version: int) -> None:
        if version > max(self.arriving, self.version):
            self.arriving, self.arrived = version, set()

    def _parameters(self, parameters: m.Parameters, now: int) -> list[k.Effect]:
        if not self.admits(parameters):
            return []
        self._expect(parameters.version)
        self.arrived.update(parameters.blocks)
        self.progress_at, self.pull_backoff_ms = now, self.limits.resend_ms
        return self._settle(now)

    # --- going on -----------------------------------------------------------------------------

    def _make_ready(self, now: int) -> list[k.Effect]:
        """Tell the coordinator, once every block of a finished clock is acknowledged."""
        if self.finish is None or any(courier.unacknowledged for courier in self.couriers):
            return []
        done, self.finish = self.finish, None
        ready = m.Ready(self._identity(), done.samples, done.leases, done.rates, done.multiplier, done.void)
        return self._ask("", ready, now)

    def _settle(self, now: int) -> list[k.Effect]:
        """Let the training thread go on if all that it waits for has arrived."""
        match self.parked:
            case "start" | "step" if self.released is not None and self._complete(self.released.version):
                released, self.released = self.released, None
                self.version, self.clock, self.attempt = self.arriving, released.next_clock, 0
                self.spare = released.lease
                self._unpark()
                return [k.Fresh(self.version, self.clock, released.committed)]
            case "lease" if self.granted is not None and (
                self._complete(self.granted.version) or (self.granted.version <= self.version and not self.arrived)
            ):
                granted, self.granted = self.granted, None
                if self.arrived:
                    self.version = self.arriving
                self.clock, self.attempt = granted.clock, 0
                self._unpark()
                return [k.Leased(granted.lease)]
            case _:
                return []

    def _complete(self, version: int) -> bool:
        return self.arriving >= version and len(self.arrived) == len(self.server_of)

    def _unpark(self) -> None:
        self.parked, self.arriving, self.arrived, self.request = "", self.version, set(), None

    def _fail(self, kind: str, text: str) -> list[k.Effect]:
        self.dead = True
        return [k.Failed(kind, text)]

    # --- time ---------------------------------------------------------------------------------

    def _tick(self, now: int) -> list[k.Effect]:
        if self.parked and now - self.parked_at >= self._patience_ms():
            return self._fail("DeadlineError", self._overdue(now))
        effects: list[k.Effect] = []
        if self.incarnation >= 0 and now - self.beat_at >= self.limits.heartbeat_ms:
            self.beat_at = now
            # The driver fills in the bytes: they are counted where they flow.
            name = f"worker/{self.worker}"
            effects.append(k.Send(COORDINATOR, m.Heartbeat(name, self.incarnation, 0, 0, self.version)))
        if self.parked and self.request is not None and now - self.asked_at >= self.backoff_ms:
            self.asked_at, self.backoff_ms = now, self._longer(self.backoff_ms)
            effects.append(k.Send(COORDINATOR, self.request))
        for server, courier in enumerate(self.couriers):
            if courier.unacknowledged and now - courier.quiet_since >= courier.backoff_ms:
                courier.quiet_since, courier.backoff_ms = now, self._longer(courier.backoff_ms)
                effects += self._resend(server)
        awaited = self.released is not None or self.granted is not None
        if self.parked and awaited and now - self.progress_at >= self.pull_backoff_ms:
            self.progress_at, self.pull_backoff_ms = now, self._longer(self.pull_backoff_ms)
            effects += self._pull(range(len(self.servers)))
        return effects

    def _regained(self, peer: str, now: int) -> list[k.Effect]:
        """A connection is back: repeat at once what its loss may have swallowed."""
        if peer == COORDINATOR:
            return [k.Send(COORDINATOR, self.request)] if self.parked and self.request is not None else []
        for server in range(len(self.couriers)):
            if peer == server_name(server):
                awaited = self.parked and (self.released is not None or self.granted is not None)
                return self._resend(server) + (self._pull([server]) if awaited else [])
        return []

    def _resend(self, server: int) -> list[k.Effect]:
        """All unacknowledged blocks of one server, in frames of the usual size."""
        if self.spec is None:
            return []
        frames: list[k.Effect] = []
        blocks: list[int] = []
        held = 0
        every = cut(self.spec)
        for index in sorted(self.couriers[server].unacknowledged):
            blocks.append(index)
            held += every[index].elements * ITEM_BYTES[self.spec.tensors[every[index].tensor].dtype]
            if held >= self.limits.frame_bytes_target:
                frames.append(k.Send(server_name(server), m.Stage(self._identity(), tuple(blocks))))
                blocks, held = [], 0
        if blocks:
            frames.append(k.Send(server_name(server), m.Stage(self._identity(), tuple(blocks))))
        return frames

    def _pull(self, servers: Iterable[int]) -> list[k.Effect]:
        """Ask these servers for the blocks of the arriving version that are missing."""
        missing: dict[int, list[int]] = {}
        for block, server in enumerate(self.server_of):
            if block not in self.arrived:
                missing.setdefault(server, []).append(block)
        return [
            k.Send(server_name(server), m.Pull(self.worker, self.incarnation, self.arriving, tuple(missing[server])))
            for server in servers
            if server in missing
        ]

    def _longer(self, backoff_ms: int) -> int:
        return min(backoff_ms * 2, self.limits.resend_ms * 8)

    def _patience_ms(self) -> int:
        forming = self.parked in FORMING
        return self.limits.start_ms + self.limits.connect_ms if forming else self.limits.wait_ms

    def _overdue(self, now: int) -> str:
        who = f"worker {self.worker}" if self.worker >= 0 else "this worker"
        waited = (now - self.parked_at) / 1000
        unstaged = [server_name(i) for i, courier in enumerate(self.couriers) if courier.unacknowledged]
        state = (
            f"{', '.join(unstaged)} did not acknowledge its gradients"
            if unstaged
            else self.reason or "the coordinator did not say why"
        )
        return (
            f"{who} waited {waited:.0f} s at clock {self.clock} for {WAITS_FOR[self.parked]}: {state}. "
            f"`shoal status` shows who is missing; SHOAL_WAIT_MS sets how long to wait"
        )
