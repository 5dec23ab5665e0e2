"""The contract of every transport: frames arrive whole, once, the urgent first, or the connection is lost.

A connection carries frames (a message and its payload) both ways between two nodes. All calls,
both ways, happen on the event loop that made the connection. Payload is received straight into the
memory that the receiver names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shoal.config import Limits
from shoal.transport.queue import Queue
from shoal.wire import messages as m
from shoal.wire.framing import Buffer


class Connection(Protocol):
    """One end of a connection to a peer."""

    @property
    def address(self) -> str:
        """The peer's address, for people."""

    @property
    def own_address(self) -> str:
        """This end's address, as the peer may see it; "" where ends have none that a third could dial."""

    @property
    def received_bytes(self) -> int:
        """Bytes that arrived, headers and messages included."""

    @property
    def sent_bytes(self) -> int:
        """Bytes given to `send`, headers and messages included."""

    @property
    def shares_memory(self) -> bool:
        """Whether file descriptors can go along with frames: both ends are on one host."""

    @property
    def queued_bytes(self) -> int:
        """Bytes given to `send` that have not left yet, as far as this process can see."""

    @property
    def round_trip_us(self) -> int:
        """How long the way to the peer and back takes at the least; 0 where it is not known, or no way at all."""

    def send(self, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        """Queues a frame behind those that are as urgent, before those that are less (see queue); never blocks.

        Keeps references to the payload, which must not change until it is sent (an answer to the
        message is the sign that it was). Does nothing on a connection that is closed or lost.
        files: descriptors to go along, where the connection shares memory; the sender may close its own.
        """

    @property
    def queue(self) -> Queue:
        """What waits to leave."""

    def share(self, queue: Queue) -> None:
        """Take from the queue of another connection to the same peer from here on, and put what is sent there."""

    def discard(self) -> None:
        """The payload that is being received lands nowhere from here on; its frame is received as not delivered."""

    def take_file(self) -> int | None:
        """The next descriptor that came along with a frame, now the caller's to close; None: there is none."""

    def allow(self, limits: Limits) -> None:
        """What arrives is held to these limits, from the next frame on; before, to those of `listen` or `connect`."""

    def close(self) -> None:
        """Closes once what is queued has been sent. Nothing is received from here on."""

    def cut(self, reason: str) -> None:
        """Closes at once, whatever is queued, for this reason; also a connection that is closing."""


class Receiver(Protocol):
    """Whoever takes the frames of a connection. Both ends may be served by one receiver."""

    def admit(self, connection: Connection, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        """Where the payload goes: memory whose lengths add up to payload_bytes. None: discard it.

        Called once for each frame with a payload, before the payload is read. The memory holds part
        of the payload until `received`, and is let go at `lost`. Raising ProtocolError closes the
        connection with that reason.
        """

    def received(self, connection: Connection, message: m.Message, delivered: bool) -> None:
        """The frame is complete; its payload lies where it was admitted, or was discarded (delivered False)."""

    def lost(self, connection: Connection, reason: str) -> None:
        """The connection is over. Called exactly once, last; reason is "" when either side closed it orderly."""


class Listener(Protocol):
    """Accepts connections at an address until closed; connections it accepted live on."""

    @property
    def address(self) -> str:
        """The address peers connect to, with the real port."""

    async def close(self) -> None: ...


class Wrapped:
    """A Connection around another, which it hands everything on to; base of those that meddle."""

    def __init__(self, inner: Connection) -> None:
        self.inner = inner

    @property
    def address(self) -> str:
        return self.inner.address

    @property
    def own_address(self) -> str:
        return self.inner.own_address

    @property
    def received_bytes(self) -> int:
        return self.inner.received_bytes

    @property
    def sent_bytes(self) -> int:
        return self.inner.sent_bytes

    @property
    def shares_memory(self) -> bool:
        return self.inner.shares_memory

    @property
    def queued_bytes(self) -> int:
        return self.inner.queued_bytes

    @property
    def round_trip_us(self) -> int:
        return self.inner.round_trip_us

    @property
    def queue(self) -> Queue:
        return self.inner.queue

    def share(self, queue: Queue) -> None:
        self.inner.share(queue)

    def discard(self) -> None:
        self.inner.discard()

    def take_file(self) -> int | None:
        return self.inner.take_file()

    def send(self, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        self.inner.send(message, payload, files)

    def allow(self, limits: Limits) -> None:
        self.inner.allow(limits)

    def close(self) -> None:
        self.inner.close()

    def cut(self, reason: str) -> None:
        self.inner.cut(reason)


Accept = Callable[[Connection], Receiver]
Wrap = Callable[[Connection], Connection]


def unwrapped(connection: Connection) -> Connection:
    """The Wrap that changes nothing."""
    return connection
