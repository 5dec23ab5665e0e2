"""Gradients in, update, parameters out: how long an exchange takes, beside peers in the same run.

Shoal's job runs throughout; the peers come one after another, so that each has the machine's memory.
While a peer is there, both sides are alive and take turns, some steps each. The idle one waits for a
line on a socket (Shoal's nodes look at the clock twenty times a second; a peer that spins instead is
stopped meanwhile). So the machine's moods hit both, and each peer is compared with the steps that Shoal
took between its own. A step is one turn of the loop a user writes (forward, backward, optimizer.step,
zero_grad) on a model whose forward and backward compute nothing. The first step of each turn is not
counted: the caches still hold the other side's data. A step's time is that of its slowest worker.

Every row is checked (verdict.py): both sides hold what torch's optimizer makes of the mean gradient, to
the same bit on all of their workers. If not, there is no row but an error. A peer that makes something else
of the gradients (Peer.differs) checks by itself what it can.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.floor import COPIES, Bandwidth, touched_bytes
from shoal.bench.memory import Meter, ServerMemory
from shoal.bench.orders import SHOAL, Answer, Order, Role, Setup, worker_name
from shoal.bench.peers.catalogue import PEERS
from shoal.bench.rows import Row, Seconds
from shoal.bench.rules import RULES
from shoal.bench.shapes import elements, gpt_shapes
from shoal.bench.sides import LOOPBACK, ORDER_SECONDS, Place, Seat, Show, Side, parts
from shoal.bench.verdict import TOLERANCE
from shoal.errors import ConfigurationError

READY_SECONDS = 240.0
END_SECONDS = 20.0  # for a peer to shut itself down
PROGRAM = ("-m", "shoal.bench.exchange_worker")


@dataclass(frozen=True)
class Plan:
    """What to measure. steps: of each side beside each peer, dealt out over `rounds` turns; warmup: before."""

    params: int
    workers: int = 2
    servers: int = 1
    transport: str = "shm"
    optimizer: str = "adamw"
    peers: tuple[str, ...] = ("ddp",)
    steps: int = 50
    warmup: int = 5
    rounds: int = 5

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name, known in (("transport", COPIES), ("optimizer", RULES)):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"--{name} {getattr(self, name)}: known are {', '.join(known)}")
        for peer in self.peers:
            if peer not in PEERS:
                raise ConfigurationError(f"--peer {peer}: known are {', '.join(PEERS)}")
        for name, least in (("workers", 1), ("servers", 1), ("steps", 1), ("warmup", 2), ("rounds", 1)):
            # Two steps before the first turn: in one Shoal and DDP learn in which order gradients come.
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least {least}")

    @property
    def states(self) -> int:
        """How many arrays the rule keeps beside the parameters."""
        return len(RULES[self.optimizer].states)

    @property
    def turns(self) -> int:
        """How often something is shown."""
        return 1 + sum(3 + (self.rounds + 1) * (1 + bool(peer)) for peer in self.peers or ("",))


class ExchangeRow(Row, frozen=True, kw_only=True):
    """One exchange beside one peer. step_seconds, peer_step_seconds: each counted step in order.

    difference, peer_difference: of the worst parameter from the reference; None for a peer that differs by nature.
    floor_seconds: see floor.py. server_memory: see memory.py; None where the servers have no process of their own.
    """

    step_seconds: list[float]
    difference: float
    steps_checked: int
    peer_seconds: Seconds | None
    peer_step_seconds: list[float]
    peer_difference: float | None
    floor_seconds: float
    bandwidth_bytes_per_second: float
    server_memory: ServerMemory | None
    tolerance: float = TOLERANCE


def exchange(plan: Plan, show: Show, place: Place = LOOPBACK) -> Iterator[ExchangeRow]:
    """Measure, and check what came out: a row as soon as a peer is done (one without peers).

    Raises WrongResultError when a side computed something else, and JobError, StartupError or
    DeadlineError when one of its processes fails.
    """
    plan.check()
    with _Run(plan, show, place) as run:
        ours = run.start(SHOAL)
        for name in plan.peers or (None,):
            peer = run.start(name) if name is not None else None
            run.measure(ours, peer)
            yield run.row(ours, peer)
            if peer is not None:
                run.end(peer)


def fastest(rows: Sequence[ExchangeRow]) -> ExchangeRow | None:
    """The row of the quickest peer, each measured by Shoal's steps beside it; None without peers."""
    return max((row for row in rows if row.ratio is not None), key=lambda row: row.ratio or 0.0, default=None)


class _Run:
    """The processes of one plan, and the turns they take."""

    def __init__(self, plan: Plan, show: Show, place: Place) -> None:
        self._plan, self._show, self._place = plan, show, place
        self._bandwidth = Bandwidth()
        self._meter: Meter | None = None
        self._done = 0
        self._stack = ExitStack()

    def __enter__(self) -> _Run:
        self._folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-", ignore_cleanup_errors=True))
        )
        fleet = Fleet("bench-exchange", self._plan.workers, self._plan.servers, self._place.host)
        self._fleet = self._stack.enter_context(fleet)
        conductor = Conductor(self._folder / "control", fleet.check, fleet.why)
        self._conductor = self._stack.enter_context(conductor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def start(self, name: str) -> Side:
        """Start the processes of one side; measure() waits until they are ready."""
        self._say(f"starting {name}")
        return self._start_shoal() if name == SHOAL else self._start_peer(name)

    def end(self, side: Side) -> None:
        """End them."""
        self._fleet.end([*side.workers, *side.helpers], END_SECONDS)

    def measure(self, ours: Side, peer: Side | None) -> None:
        """Warm up, take turns, and check what came out."""
        plan, sides = self._plan, [side for side in (ours, peer) if side is not None]
        ours.seconds = []
        self._bandwidth.begin()
        look = self._meter.look if self._meter is not None else None
        for side in sides:
            self._conductor.gather(side.workers, READY_SECONDS)
            self._sleep(side)
        for side in sides:
            self._say(f"{side.name} warms up")
            with self._awake(side):
                side.turn(plan.warmup, self._conductor, look if side is ours else None)
        for number, steps in enumerate(parts(plan.steps, plan.rounds), 1):
            for side in sides:
                self._bandwidth.look()
                self._say(f"round {number} of {plan.rounds}: {side.name}")
                if steps:
                    with self._awake(side):
                        side.seconds += side.turn(steps + 1, self._conductor)[1:]
            if look is not None:
                look()
        for side in sides:
            self._say(f"checking {side.name}")
            with self._awake(side):
                self._check(side)

    def _check(self, side: Side) -> None:
        if _differs(side):
            self._conductor.ask(dict.fromkeys(side.workers, Order(0)), Answer, ORDER_SECONDS, "the check")
        else:
            side.check(self._conductor)

    @contextmanager
    def _awake(self, side: Side) -> Iterator[None]:
        """Processes that spin while they wait run inside the block only."""
        self._fleet.resume(self._spinning(side))
        yield
        self._sleep(side)

    def _sleep(self, side: Side) -> None:
        self._fleet.pause(self._spinning(side))

    @staticmethod
    def _spinning(side: Side) -> list[str]:
        spins = side.name in PEERS and PEERS[side.name].spins
        return [*side.workers, *side.helpers] if spins else []

    def row(self, ours: Side, peer: Side | None) -> ExchangeRow:
        plan = self._plan
        params = elements(gpt_shapes(plan.params))
        middle = statistics.median(ours.seconds)
        bandwidth = self._bandwidth.bytes_per_second()
        floor = touched_bytes(params, plan.workers, plan.states, plan.transport) / bandwidth
        return ExchangeRow(
            bench="exchange",
            params=params,
            workers=plan.workers,
            servers=plan.servers,
            transport=plan.transport,
            policy="Sync()",
            optimizer=plan.optimizer,
            peer=peer.name if peer else None,
            seconds=Seconds.of(ours.seconds),
            ratio=middle / statistics.median(peer.seconds) if peer else None,
            floor_share=floor / middle,
            step_seconds=ours.seconds,
            difference=ours.difference,
            steps_checked=ours.steps,
            peer_seconds=Seconds.of(peer.seconds) if peer else None,
            peer_step_seconds=peer.seconds if peer else [],
            peer_difference=peer.difference if peer and not _differs(peer) else None,
            floor_seconds=floor,
            bandwidth_bytes_per_second=bandwidth,
            server_memory=self._meter.result(params, plan.states) if self._meter is not None else None,
        )

    # --- processes --------------------------------------------------------------------------------

    def _start_shoal(self) -> Side:
        plan, place, facts = self._plan, self._place, {"SHOAL_TRANSPORT": self._plan.transport}
        workers = [worker_name(SHOAL, rank) for rank in range(plan.workers)]
        if plan.transport == "inproc":
            self._start(self._setup(SHOAL), place.workers, {})
            return Side(SHOAL, workers)
        address = self._fleet.start_job(prefix=place.servers.prefix, **facts)
        self._meter = Meter([self._fleet.pid(name) for name in self._fleet.servers()])
        for rank in range(plan.workers):
            own = {**facts, "SHOAL_RANK": rank, "SHOAL_COORDINATOR": address}
            self._start(self._setup(SHOAL, rank), place.workers, own)
        return Side(SHOAL, workers)

    def _start_peer(self, name: str) -> Side:
        peer, place = PEERS[name], self._place
        if peer.led:
            leader = self._setup(name, role="leader")
            self._start(leader, place.workers, {}, share=1)
            return Side(name, [leader.name])
        helpers: list[str] = []
        if peer.server:
            server = self._setup(name, role="server")
            self._start(server, place.servers, {}, share=1)
            helpers.append(server.name)
        for rank in range(self._plan.workers):
            seat = place.workers if peer.server else place.alone[rank % len(place.alone)]
            self._start(self._setup(name, rank), seat, {})
        return Side(name, [worker_name(name, rank) for rank in range(self._plan.workers)], helpers)

    def _start(self, setup: Setup, seat: Seat, facts: Mapping[str, object], share: int = 0) -> None:
        """share: how many processes compute at the same time; by default the workers."""
        every = {
            "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // (share or self._plan.workers)),
            "GLOO_SOCKET_IFNAME": seat.interface,
            "TP_SOCKET_IFNAME": seat.interface,
        }
        arguments = (*PROGRAM, msgspec.json.encode(setup).decode())
        self._fleet.start(setup.name, arguments, seat.prefix, **every, **facts)

    def _setup(self, side: str, rank: int = 0, role: Role = "worker") -> Setup:
        plan = self._plan
        return Setup(
            side=side,
            rank=rank,
            role=role,
            params=plan.params,
            workers=plan.workers,
            servers=plan.servers,
            transport=plan.transport,
            optimizer=plan.optimizer,
            control=str(self._folder / "control"),
            meeting=str(self._folder / f"{side}-meeting"),
        )

    def _say(self, what: str) -> None:
        self._show(what, min(self._done, self._plan.turns), self._plan.turns)
        self._done += 1


def _differs(side: Side) -> bool:
    return side.name in PEERS and bool(PEERS[side.name].differs)
