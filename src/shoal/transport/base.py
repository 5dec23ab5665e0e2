"""The contract of every transport: frames arrive whole, in order, once, or the connection is lost.

A connection carries frames (a message and its payload) both ways between two nodes. All calls,
both ways, happen on the event loop that made the connection. Payload is received straight into the
memory that the receiver names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shoal.wire import messages as m
from shoal.wire.framing import Buffer


class Connection(Protocol):
    """One end of a connection to a peer."""

    @property
    def address(self) -> str:
        """The peer's address, for people."""

    @property
    def received_bytes(self) -> int:
        """Bytes that arrived, headers and messages included."""

    @property
    def sent_bytes(self) -> int:
        """Bytes given to `send`, headers and messages included."""

    def send(self, message: m.Message, payload: Sequence[Buffer] = ()) -> None:
        """Queues a frame, first in, first out; never blocks.

        Keeps references to the payload, which must not change until it is sent (an answer to the
        message is the sign that it was). Does nothing on a connection that is closed or lost.
        """

    def close(self) -> None:
        """Closes once what is queued has been sent. Nothing is received from here on."""


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


Accept = Callable[[Connection], Receiver]
Wrap = Callable[[Connection], Connection]


def unwrapped(connection: Connection) -> Connection:
    """The Wrap that changes nothing."""
    return connection
