"""Frames between two nodes of one process, on one event loop, with the manners of TCP.

Messages are encoded and decoded as on the wire, so that what works here works there: the same
limits, the same counts of bytes, no object shared. Payload is copied once, when it is delivered,
from the sender's buffers to where the receiver admitted it.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping, Sequence
from weakref import WeakKeyDictionary

from shoal.config import Limits, Tls
from shoal.errors import ConfigurationError, ProtocolError
from shoal.transport.base import Accept, Connection, Listener, Receiver, Wrap, unwrapped
from shoal.transport.dial import dial
from shoal.transport.framed import FramedConnection
from shoal.wire.framing import Buffer

SCHEME = "inproc"
WINDOW_BYTES = 1 << 20  # on their way at once; what is sent beyond waits where urgent frames overtake

# Names are known within one event loop, and forgotten with it.
_LISTENERS: MutableMapping[asyncio.AbstractEventLoop, dict[str, _InprocListener]] = WeakKeyDictionary()


async def listen(
    address: str, accept: Accept, limits: Limits, wrap: Wrap = unwrapped, _: Tls | None = None
) -> Listener:
    """Accepts connections at "inproc://name" from this event loop. Raises ConfigurationError for a taken name."""
    names = _listeners()
    if address in names:
        raise ConfigurationError(f"{address} is taken by another listener of this event loop; choose another name")
    names[address] = _InprocListener(address, accept, limits, wrap)
    return names[address]


async def connect(
    address: str,
    receiver: Receiver,
    limits: Limits,
    deadline_ms: int,
    wrap: Wrap = unwrapped,
    _: Tls | None = None,
) -> Connection:
    """Connects to "inproc://name", trying again until the deadline. Raises StartupError when nothing answers."""

    async def attempt() -> Connection:
        listener = _listeners().get(address)
        if listener is None:
            raise ConnectionRefusedError("nothing listens there in this event loop")
        connection = _InprocConnection(address, lambda _: receiver, limits, wrap)
        listener.meet(connection)
        connection.open()
        return connection.face

    return await dial(address, attempt, deadline_ms)


class _InprocListener:
    def __init__(self, address: str, accept: Accept, limits: Limits, wrap: Wrap) -> None:
        self.address = address
        self._accept = accept
        self._limits = limits
        self._wrap = wrap

    def meet(self, peer: _InprocConnection) -> None:
        """Makes this end of a connection to `peer`."""
        connection = _InprocConnection(self.address, self._accept, self._limits, self._wrap)
        connection.peer, peer.peer = peer, connection
        asyncio.get_running_loop().call_soon(connection.open)

    async def close(self) -> None:
        _listeners().pop(self.address, None)


class _InprocConnection(FramedConnection):
    peer: _InprocConnection
    _under_way_bytes = 0

    def open(self) -> None:
        self._open()

    def arrive(self, frame: bytes, payload: Sequence[Buffer]) -> None:
        """A frame from the peer."""
        self.peer.arrived(len(frame) + sum(memoryview(piece).nbytes for piece in payload))
        if self._ended:
            return
        try:
            for piece in (frame, *payload):
                self.received_bytes += memoryview(piece).nbytes
                self._decoder.feed(piece)
        except ProtocolError as error:
            self._refuse(error)
        except BaseException as error:  # the receiver's own error: the loop shows it, as on TCP
            self._break(f"{type(error).__name__}: {error}")
            self._drop()
            raise

    def arrived(self, count: int) -> None:
        """The peer has this many bytes."""
        self._under_way_bytes -= count
        if self._paused:
            self._loop.call_soon(self._refill)

    def gone(self) -> None:
        """The peer has closed."""
        self._break("")

    def _refill(self) -> None:
        if self._paused and self._under_way_bytes <= WINDOW_BYTES:
            self._resume()

    def _unsent_bytes(self) -> int:
        return self._under_way_bytes

    def _write(self, frame: bytes, payload: Sequence[Buffer], files: Sequence[int]) -> None:
        self._loop.call_soon(self.peer.arrive, frame, tuple(payload))
        self._under_way_bytes += len(frame) + sum(memoryview(piece).nbytes for piece in payload)
        if self._under_way_bytes > WINDOW_BYTES:
            self._pause()

    def _finish(self) -> None:
        self._loop.call_soon(self.peer.gone)
        self._break("")  # nothing is waited for

    def _drop(self) -> None:
        self._finish()


def _listeners() -> dict[str, _InprocListener]:
    return _LISTENERS.setdefault(asyncio.get_running_loop(), {})
