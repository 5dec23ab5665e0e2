"""A peer: the connection that a node has to another, and the further streams beside it on a long link.

Messages go over the first connection; payload over the further streams, so that nothing urgent waits
behind it. They share one queue, and each takes from it as fast as it can send. What a lost stream
carried is lost, as ever; the peer itself is lost with its first connection, and its streams are closed
then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.transport import Connection, Wrap
from shoal.wire import messages as m
from shoal.wire.framing import Buffer


@dataclass(eq=False)
class Peer:
    """What is known of the other end of `connection`."""

    connection: Connection
    name: str = ""  # known once the handshake is over
    accepted: asyncio.Future[None] | None = None  # of a dial that waits for its handshake
    link: int = 0  # chosen by who dialled, for this connection and its streams
    first: Peer | None = None  # whose further stream this is, while it is being opened
    wrapped: Connection = field(init=False)
    streams: dict[Connection, Connection] = field(default_factory=dict)  # and what is sent by in their place
    landing: dict[Connection, m.Message] = field(default_factory=dict)  # whose payload is being received

    def __post_init__(self) -> None:
        self.wrapped = self.connection

    def send(self, message: m.Message, payload: Sequence[Buffer], files: Sequence[int]) -> None:
        way = self.wrapped
        if payload and self.streams:
            way = min(self.streams.values(), key=lambda stream: stream.queued_bytes)
        way.send(message, payload, files)

    def join(self, connection: Connection, wrap: Wrap) -> None:
        """From now on payload goes over this stream, too."""
        if self.streams:
            connection.share(next(iter(self.streams)).queue)
        self.streams[connection] = wrap(connection)

    def leave(self, connection: Connection) -> bool:
        """A connection is over; False if it was a stream, and the peer is still there."""
        self.landing.pop(connection, None)
        if self.streams.pop(connection, None) is not None:
            return False
        for stream in self.streams:
            stream.close()
        return True

    def discard(self, blocks: Sequence[int] | None = None) -> None:
        """What is being received of these parameters (None: of all) lands nowhere from here on."""
        for connection, message in list(self.landing.items()):
            if isinstance(message, m.Parameters) and (blocks is None or not set(blocks).isdisjoint(message.blocks)):
                connection.discard()
                del self.landing[connection]
