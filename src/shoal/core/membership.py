"""Who is in the job: servers, and workers with their incarnation, clock and state.

A worker is alive while it is heard from; one that is silent for lease_ms, or whose connection
broke and stayed broken for grace_ms, is dead and its incarnation may change nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.vocabulary import Lease, node_number
from shoal.wire import messages as m

# The life of a member, in order:
JOINED = "joined"  # has a number, no table yet
DECLARED = "declared"  # has declared the table, waits for its first parameters
COMPUTING = "computing"  # works on its clock
READY = "ready"  # its contribution is complete, not committed
PARKED = "parked"  # its contribution is committed, it waits for parameters (Bounded)
IDLE = "idle"  # waits for a lease


@dataclass
class Member:
    """One incarnation of one worker."""

    worker: int
    incarnation: int
    nonce: int
    pid: int
    heard_at: int
    state: str = JOINED
    clock: int = 0
    settled: int = 0  # the last clock that it has finished
    version: int = 0  # of the parameters it computes on
    view: int = 0  # the last placement that it knows
    broken_at: int | None = None  # when its connection was lost
    seeder: bool = False
    ready: m.Ready | None = None
    group: tuple[tuple[int, int], ...] = ()  # (worker, incarnation) of all its ranks, by part; (): it is alone
    bereft: str = ""  # which rank of its group has left, and what follows
    dropped: bool = False  # what it made ready is not used: its samples were taken back before
    released: m.Released | None = None  # the last answer, to repeat
    request: m.LeaseRequest | None = None
    granted: m.Granted | None = None  # the last answer, to repeat
    leases: list[Lease] = field(default_factory=list)  # taken for this clock, not committed
    ended: int = -1  # the last data epoch it was told is over
    leasing: bool = False  # takes its samples from the ledger
    own_data: bool = False  # its last contribution used no lease
    started_at: int = 0  # when it began to compute
    ready_at: int = 0  # when its last contribution was
    speed: float = 0.0  # samples per second, smoothed
    samples: int = 0  # committed
    contributed: int = 0  # samples of its last contribution
    received: int = 0
    sent: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether policies count this worker."""
        return self.state in (COMPUTING, READY, PARKED)

    @property
    def unit(self) -> int:
        """The number of its unit (core/unit.py): the lowest of its workers'."""
        return min((worker for worker, _ in self.group), default=self.worker)

    @property
    def part(self) -> tuple[int, int]:
        """Which part of every gradient, and of the parameters, is its own, of how many."""
        me = (self.worker, self.incarnation)
        return (self.group.index(me), len(self.group)) if self.group else (0, 1)

    def shares(self, other: Member) -> bool:
        """Whether they are of one unit."""
        return self is other or (bool(self.group) and self.group == other.group)

    def pace(self, members: Iterable[Member]) -> float:
        """Its speed by that of the fastest of these: in (0, 1]; 1 while it is not known."""
        fastest = max((other.speed for other in members), default=0.0)
        return min(1.0, self.speed / fastest) if self.speed > 0 and fastest > 0 else 1.0

    def computed(self, ready: m.Ready, now: int) -> None:
        """Learn from the clock it has just finished: how fast it is, and where its samples come from."""
        speed = 1000 * ready.samples / max(1, now - self.started_at)
        self.speed = speed if self.speed == 0 else (self.speed + speed) / 2
        self.ready_at = now
        self.own_data = not ready.leases
        self.contributed = ready.samples


@dataclass
class Server:
    """One server."""

    index: int
    address: str
    pid: int
    heard_at: int
    host: str = ""
    created: bool = False
    version: int = 0
    view: int = 0  # the last placement that it knows
    checksums: dict[int, int] = field(default_factory=dict)  # by version, until they are compared
    broken_at: int | None = None
    received: int = 0
    sent: int = 0

    @property
    def process(self) -> tuple[str, int]:
        """Several servers may share one."""
        return self.host, self.pid


@dataclass
class Membership:
    """All members by worker number, and all servers by index."""

    limits: Limits
    servers: dict[int, Server] = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    incarnations: int = 0
    joined_ever: int = 0
    empty_at: int | None = None  # when the last member went
    parted: bool = False  # it left politely
    buried: dict[int, int] = field(default_factory=dict)  # by worker: process of its last life that was declared dead

    def holder(self, join: m.Join) -> Member | None:
        """Who has the place that is asked for: the rank, or for any rank (-1) the one given to this process."""
        if join.rank >= 0:
            return self.members.get(join.rank)
        return next((member for member in self.ordered() if member.nonce == join.nonce), None)

    def join(self, join: m.Join, now: int) -> Member:
        """A new member under the rank it asks for (-1: the lowest free one)."""
        worker = join.rank
        if worker < 0:
            worker = next(number for number in range(len(self.members) + 1) if number not in self.members)
        self.incarnations += 1
        self.joined_ever += 1
        return self.adopt(Member(worker, self.incarnations - 1, join.nonce, join.pid, heard_at=now))

    def adopt(self, member: Member) -> Member:
        """It is a member from now on, and has its place to itself."""
        self.members[member.worker] = member
        self.empty_at = None
        if self.buried.get(member.worker) == member.pid:
            del self.buried[member.worker]  # it lives, and joined anew
        return member

    def remove(self, member: Member, now: int, parted: bool) -> None:
        """The member is gone; parted: it said so."""
        del self.members[member.worker]
        self.parted = parted
        if not parted:
            self.buried[member.worker] = member.pid
        if not self.members:
            self.empty_at = now

    def find(self, worker: int, incarnation: int) -> Member | None:
        """The member, unless this incarnation is not (or no longer) alive."""
        member = self.members.get(worker)
        return member if member is not None and member.incarnation == incarnation else None

    def ordered(self) -> list[Member]:
        return [self.members[worker] for worker in sorted(self.members)]

    def connection(self, peer: str, broken_at: int | None) -> None:
        """Note when the connection to a member or server broke; None: it is back."""
        kind, number = peer.partition("/")[0], node_number(peer)
        known: dict[int, Member] | dict[int, Server] = {}
        known = self.members if kind == "worker" else self.servers if kind == "server" else {}
        if number in known:
            known[number].broken_at = broken_at

    def excuse(self, now: int) -> None:
        """The coordinator itself was stopped: what the others said meanwhile has yet to be read."""
        for member in self.members.values():
            member.heard_at = now
        for server in self.servers.values():
            server.heard_at = now

    def dead(self, now: int) -> list[tuple[Member, str]]:
        """Members past their lease or grace, each with the reason in words."""
        found: list[tuple[Member, str]] = []
        for member in self.ordered():
            if member.broken_at is not None and now - member.broken_at >= self.limits.grace_ms:
                found.append((member, f"its connection broke {now - member.broken_at} ms ago and did not come back"))
            elif now - member.heard_at >= self.limits.lease_ms:
                found.append((member, f"it was silent for {now - member.heard_at} ms (SHOAL_LEASE_MS)"))
        return found

    def dead_servers(self, now: int) -> list[tuple[Server, str]]:
        """Servers past their lease or grace, each with the reason in words."""
        found: list[tuple[Server, str]] = []
        for _, server in sorted(self.servers.items()):
            if server.broken_at is not None:
                reason = f"its connection broke {now - server.broken_at} ms ago"
            else:
                reason = f"it was silent for {now - server.heard_at} ms"
            broken = server.broken_at is not None and now - server.broken_at >= self.limits.grace_ms
            if broken or now - server.heard_at >= self.limits.lease_ms:
                found.append((server, reason))
        return found
