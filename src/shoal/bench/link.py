"""Over a link of 1 Gbit/s and 20 ms: how much of the line an exchange fills.

Servers and coordinator run in one network namespace, workers in another (namespaces.py); Shoal goes by
TCP between them, with the job's token. The floor is the line: the bytes that must cross it over its rate,

    2 W 4 P 8 / rate        each of W workers' gradients up, then the parameters down to each of them;
                            under Sync() nothing can come down before all has gone up

and floor_share is that over the median step: the share of the line rate.

Peers on the same link, in turn: torch's RPC server (rpc), placed as Shoal's is. DistributedDataParallel and
the flat all-reduce have no server: their workers sit on both sides, one on each if they are two. A ring of
two sends each gradient once each way, both ways at once, a quarter of what servers on one side of the
link must send; a ratio far above 1 is therefore the topology's. Shoal's answer to it is fewer
bytes or fewer steps, not a faster wire.

Before the exchange the link itself is probed: one connection's round trip and its bytes per second.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import asdict

from shoal.bench.exchange import ExchangeRow, exchange
from shoal.bench.exchange import Plan as ExchangePlan
from shoal.bench.fleet import Fleet
from shoal.bench.floor import ITEM_BYTES
from shoal.bench.namespaces import SERVERS_HOST, Link, Shape, joined
from shoal.bench.relay import CLONE_NEWNET
from shoal.bench.sides import Show
from shoal.errors import ConfigurationError, DeadlineError

PEER_NAMES = ("ddp", "allreduce", "rpc")
PROBE_SECONDS = 2.0  # of which the second half counts: the window is open by then
PROBE_DEADLINE_SECONDS = 30.0
CHUNK_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What to measure, and over which link."""

    params: int = 10_000_000
    workers: int = 2
    servers: int = 1
    optimizer: str = "adamw"
    peers: tuple[str, ...] = ("ddp",)
    steps: int = 15
    warmup: int = 3
    rounds: int = 3
    shape: Shape = field(default_factory=Shape)

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for peer in self.peers:
            if peer not in PEER_NAMES:
                raise ConfigurationError(f"--peer {peer} does not cross a link; known are {', '.join(PEER_NAMES)}")
        if self.shape.bits_per_second <= 0 or self.shape.delay_ms <= 0:
            raise ConfigurationError("--rate and --delay must be above 0")
        self.exchange.check()

    @property
    def exchange(self) -> ExchangePlan:
        return ExchangePlan(
            self.params, self.workers, self.servers, "tcp", self.optimizer, self.peers, self.steps, self.warmup,
            self.rounds,
        )  # fmt: skip


class LinkRow(ExchangeRow, frozen=True, kw_only=True):
    """An exchange over the link. floor_seconds, floor_share: of the line, not of memory.

    line_bytes: that must cross in one step, both ways. delayed_by: "netem" or "relay", see namespaces.py.
    probe_*: of one plain connection.
    """

    bits_per_second: int
    delay_ms: float
    delayed_by: str
    line_bytes: int
    probe_round_trip_seconds: float
    probe_bits_per_second: float


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """In place of a row, where the link cannot be made. The first fields are those of every row."""

    bench: str
    params: int
    workers: int
    servers: int
    transport: str
    policy: str
    optimizer: str
    peer: str | None
    seconds: None = None
    ratio: None = None
    floor_share: None = None
    skipped: str


def skipped(plan: Plan, why: str) -> Skipped:
    """The row that says so."""
    return Skipped(
        bench="link",
        params=plan.params,
        workers=plan.workers,
        servers=plan.servers,
        transport="tcp",
        policy="Sync()",
        optimizer=plan.optimizer,
        peer=None,
        skipped=why,
    )


def link(plan: Plan, show: Show) -> Iterator[LinkRow]:
    """Measure, and check what came out: a row for each peer.

    Ask namespaces.obstacle() first. Raises what exchange() raises, and JobError when the link cannot be made.
    """
    plan.check()
    with Fleet("bench-link", 1, 1) as fleet, joined(plan.shape, fleet) as made:
        show("probing the link", 0, plan.exchange.turns)
        round_trip, speed = probe(made)
        for row in exchange(plan.exchange, show, made.place):
            crossing = 2 * plan.workers * ITEM_BYTES * row.params
            floor = crossing * 8 / plan.shape.bits_per_second
            facts = {**asdict(row), "bench": "link", "floor_seconds": floor, "floor_share": floor / row.seconds.median}
            yield LinkRow(
                **facts,
                bits_per_second=plan.shape.bits_per_second,
                delay_ms=plan.shape.delay_ms,
                delayed_by=made.delayed_by,
                line_bytes=crossing,
                probe_round_trip_seconds=round_trip,
                probe_bits_per_second=8 * speed,
            )


def probe(made: Link) -> tuple[float, float]:
    """Round trip in seconds, and bytes per second from the workers' side to the servers'."""
    with _inside(made.servers, lambda: socket.create_server((SERVERS_HOST, 0))) as listener:
        listener.settimeout(PROBE_DEADLINE_SECONDS)
        port = listener.getsockname()[1]
        with ThreadPoolExecutor(1) as pool:
            arriving = pool.submit(_arrivals, listener)
            with _inside(made.workers, socket.socket) as sender:
                sender.settimeout(PROBE_DEADLINE_SECONDS)
                start = time.perf_counter()
                sender.connect((SERVERS_HOST, port))
                round_trip = time.perf_counter() - start
                until = time.monotonic() + PROBE_SECONDS
                while time.monotonic() < until:
                    sender.sendall(bytes(CHUNK_BYTES))
            return round_trip, arriving.result(PROBE_DEADLINE_SECONDS)


def _arrivals(listener: socket.socket) -> float:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(PROBE_DEADLINE_SECONDS)
        buffer = bytearray(CHUNK_BYTES)
        begin = time.monotonic()
        counted, since, last = 0, 0.0, begin
        while received := connection.recv_into(buffer):
            last = time.monotonic()
            if last - begin < PROBE_SECONDS / 2:
                since = last
            else:
                counted += received
        return counted / max(last - since, 1e-9)


def _inside(namespace: str, make: Callable[[], T]) -> T:
    """Call `make` in this network namespace; what sockets it makes belong to that ever after."""
    made: Future[T] = Future()

    def run() -> None:  # on a thread of its own, which takes the namespace with it when it ends
        try:
            with Path("/run/netns", namespace).open() as file:
                library = ctypes.CDLL(None, use_errno=True)
                if library.setns(file.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns into {namespace}")
            made.set_result(make())
        except OSError as error:
            made.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return made.result(PROBE_DEADLINE_SECONDS)
    except TimeoutError:
        raise DeadlineError(f"no socket in {namespace} after {PROBE_DEADLINE_SECONDS:g} s") from None
