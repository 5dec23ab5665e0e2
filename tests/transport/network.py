"""Two ends of a connection over any transport, for the tests of what all transports have in common.

A transport joins all of them by a line in NETWORKS.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import uvloop

from shoal.config import Limits, Tls
from shoal.transport import Accept, Connection, Listener, Receiver, connect, listen, shm
from shoal.transport.tls import dialling
from shoal.wire import messages as m

from .certificates import certificate

LIMITS = Limits(message_bytes_max=1 << 20, payload_bytes_max=8 << 20)
WAIT_S = 20


@dataclass
class Inbox:
    """A receiver that writes down what happens to it and can be waited for."""

    place: Callable[[m.Message, int], Sequence[memoryview] | None] | None = None
    react: Callable[[Connection, m.Message], None] = lambda connection, message: None
    connection: Connection | None = None
    frames: list[tuple[m.Message, bytes | None]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    memory: list[memoryview] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def accept(self, connection: Connection) -> Inbox:
        self.connection = connection
        self.changed.set()
        return self

    def admit(self, connection: Connection, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        assert not self.losses
        assert payload_bytes > 0
        places = [memoryview(bytearray(payload_bytes))] if self.place is None else self.place(message, payload_bytes)
        self.memory = list(places or ())
        self.changed.set()
        return places

    def received(self, connection: Connection, message: m.Message, delivered: bool) -> None:
        assert not self.losses
        self.connection = connection
        self.frames.append((message, b"".join(self.memory) if delivered else None))
        self.memory = []
        self.react(connection, message)
        self.changed.set()

    def lost(self, connection: Connection, reason: str) -> None:
        self.losses.append(reason)
        self.changed.set()

    @property
    def messages(self) -> list[m.Message]:
        return [message for message, _ in self.frames]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def arrived(self, count: int) -> None:
        await self.until(lambda: len(self.frames) >= count)

    async def ended(self) -> str:
        """The reason of the one loss."""
        await self.until(lambda: self.losses)
        await asyncio.sleep(0.01)
        assert len(self.losses) == 1
        return self.losses[0]


@dataclass
class Pair:
    """A listener with one connection to it, seen from both ends."""

    listener: Listener
    near: Inbox  # the end that connected
    far: Inbox  # the end that accepted
    connection: Connection

    @property
    def accepted(self) -> Connection:
        assert self.far.connection is not None
        return self.far.connection


@dataclass
class Network:
    """One transport on one event loop."""

    name: str
    run_loop: Callable[[Awaitable[None]], None]
    encrypted: bool = False

    @property
    def tls(self) -> Tls | None:
        return certificate() if self.encrypted else None

    async def listen(self, address: str, accept: Accept, limits: Limits = LIMITS) -> Listener:
        return await listen(address, accept, limits, tls=self.tls)

    async def connect(self, address: str, receiver: Receiver, deadline_ms: int) -> Connection:
        return await connect(address, receiver, LIMITS, deadline_ms, tls=self.tls)

    async def blocking(self, listener: Listener) -> socket.socket:
        """A peer over TCP that does with its socket what it likes; over TLS it has a certificate."""
        host, port = listener.address.removeprefix("tcp://").rsplit(":", 1)

        def connected() -> socket.socket:
            plain = socket.create_connection((host, int(port)), timeout=WAIT_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else records wait for one another
            return dialling(self.tls).wrap_socket(plain, server_hostname=host) if self.tls else plain

        return await asyncio.get_running_loop().run_in_executor(None, connected)

    @property
    def somewhere(self) -> str:
        return {"inproc": "inproc://node", "shm": "shm://"}.get(self.name, "tcp://127.0.0.1:0")

    @property
    def nowhere(self) -> str:
        if self.name == "inproc":
            return "inproc://nobody"
        if self.name == "shm":
            return f"shm://{shm.here()}/nobody"
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{unused.getsockname()[1]}"

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Runs it, and fails on errors that only the event loop has seen."""
        seen: list[dict[str, object]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
            await scenario()

        self.run_loop(watched())
        assert seen == []

    def run_pair(self, scenario: Callable[[Pair], Awaitable[None]], far_limits: Limits = LIMITS) -> None:
        async def paired() -> None:
            near, far = Inbox(), Inbox()
            listener = await self.listen(self.somewhere, far.accept, far_limits)
            connection = await self.connect(listener.address, near, deadline_ms=5000)
            await far.until(lambda: far.connection is not None)
            await scenario(Pair(listener, near, far, connection))
            connection.close()
            await far.ended()
            await near.ended()
            await listener.close()

        self.run(paired)


NETWORKS = {
    "inproc": Network("inproc", asyncio.run),
    "shm": Network("shm", uvloop.run),
    "tcp": Network("tcp", uvloop.run),
    "tcp on asyncio": Network("tcp", asyncio.run),
    "tcp with TLS": Network("tcp", uvloop.run, encrypted=True),
    "tcp with TLS on asyncio": Network("tcp", asyncio.run, encrypted=True),
}


def text(number: int) -> m.Stop:
    return m.Stop(str(number))
