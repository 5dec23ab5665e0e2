"""What idle workers cost a server: the memory of their connections, and the speed of a busy one.

A real server, without a table, is given COUNT connections that complete their handshake and then are
silent, all from one child process. Memory is the growth of the server's resident set. The busy one
pushes gradients that the server reads and drops, once without the others and once among them.

python -m shoal.bench.connections ADDRESS COUNT    (the child; its job is in SHOAL_* variables)
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from shoal.bench.fleet import Fleet
from shoal.config import PROTOCOL, Job, Limits
from shoal.errors import JobError, RefusedError
from shoal.runtime.process import READY, job_from
from shoal.transport import ALTERNATIVE
from shoal.transport.files import allow
from shoal.transport.tcp import host_and_port
from shoal.vocabulary import Contributor, worker_name
from shoal.wire import messages as m
from shoal.wire.framing import Decoder, encode

SERVER, CROWD = "server 0", "crowd"
BUSY = 0  # the busy worker's rank; the idle ones follow
PUSH_BYTES = 256 << 20
ROUNDS = 5
WAIT_SECONDS = 30.0
AT_ONCE = 64  # connections that are being made at one time


class Idle(msgspec.Struct, frozen=True):
    """What was measured. bytes: the server's growth; seconds: of the quickest push of PUSH_BYTES."""

    connections: int
    bytes: int
    bytes_each: float
    seconds_alone: float
    seconds_among: float
    slowdown: float  # 1: none


def idle_connections(count: int = 1000, show: Callable[[str], None] = lambda what: None) -> Idle:
    """Measures `count` idle connections to one server.

    Raises ConfigurationError when the system does not allow that many open files, JobError,
    StartupError or DeadlineError when a process fails.
    """
    allow(count)
    with Fleet("bench-connections", count + 1, 1) as fleet:
        show("starting a server")
        fleet.start_job()
        job = Job(fleet.plan.job, fleet.plan.token)
        address = fleet.ready(SERVER).split(ALTERNATIVE)[-1]
        with Busy(address, job) as busy:
            show("one busy worker alone")
            alone = min(busy.push() for _ in range(ROUNDS))
            before = resident_bytes(fleet.pid(SERVER))
            show(f"{count} idle workers join")
            fleet.start(CROWD, ("-m", "shoal.bench.connections", address, str(count)))
            fleet.ready(CROWD)
            grown = resident_bytes(fleet.pid(SERVER)) - before
            show("the busy worker among them")
            among = min(busy.push() for _ in range(ROUNDS))
        fleet.check()
    return Idle(count, grown, grown / count, alone, among, among / alone)


def resident_bytes(pid: int) -> int:
    """A process's resident set, as the kernel counts it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (held,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(held) << 10


class Busy:
    """A worker that pushes gradients as fast as the server reads them. All calls block."""

    def __init__(self, address: str, job: Job) -> None:
        self._answers: list[m.Message] = []
        self._decoder = Decoder(Limits(), lambda message, size: None, lambda message, _: self._answers.append(message))
        self._socket = socket.create_connection(host_and_port(address), timeout=WAIT_SECONDS)
        self._ask(m.Hello(PROTOCOL, job.name, job.token, worker_name(BUSY)))

    def push(self) -> float:
        """Seconds until the server has read PUSH_BYTES."""
        payload = bytes(Limits.frame_bytes_target)
        head = encode(m.Stage(Contributor(BUSY, 0, 1, 0), (0,)), len(payload))
        start = time.perf_counter()
        for _ in range(PUSH_BYTES // len(payload)):
            self._socket.sendall(head)
            self._socket.sendall(payload)
        self._ask(m.Pull(BUSY, 0, -1, ()))  # there is no such version: Moved is the answer, once all before is read
        return time.perf_counter() - start

    def _ask(self, request: m.Message) -> None:
        """Sends a request and waits for its answer."""
        self._socket.sendall(encode(request))
        while not self._answers:
            data = self._socket.recv(1 << 16)
            if not data:
                raise JobError("the server closed the connection of the busy worker: see its log")
            self._decoder.feed(data)
        answer = self._answers.pop()
        if isinstance(answer, m.Refused):
            raise RefusedError(f"the server refused the busy worker: {answer.reason}")

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class Member(asyncio.Protocol):
    """One idle worker: says Hello, and is `accepted` once it is answered."""

    def __init__(self, hello: bytes) -> None:
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hello = hello
        self._decoder = Decoder(Limits(), lambda message, size: None, self._answered)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # kept, or it would close
        transport.write(self._hello)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._decoder.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(JobError(f"an idle worker lost its connection: {exc or 'closed'}"))

    def _answered(self, message: m.Message, _: bool) -> None:
        if self.accepted.done():
            return
        if isinstance(message, m.Accepted):
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(RefusedError(f"an idle worker was refused: {message}"))


async def _crowd(address: str, count: int, job: Job) -> None:
    """Connect `count` members, say so, and stay until ended."""
    allow(count)
    host, port = host_and_port(address)
    door = asyncio.Semaphore(AT_ONCE)

    async def join(rank: int) -> Member:
        hello = encode(m.Hello(PROTOCOL, job.name, job.token, worker_name(rank)))
        async with door, asyncio.timeout(WAIT_SECONDS):
            _, member = await asyncio.get_running_loop().create_connection(lambda: Member(hello), host, port)
            await member.accepted
        return member

    members = await asyncio.gather(*(join(BUSY + 1 + number) for number in range(count)))
    print(READY, f"{len(members)} connections", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_crowd(sys.argv[1], int(sys.argv[2]), job_from()))
