"""Frames over TCP, received straight into place and sent without joining large buffers.

Runs on uvloop and on asyncio's own loop. The kernel writes payload into the memory that the
receiver admitted (BufferedProtocol); uvloop keeps references to the buffers it sends, asyncio
copies what the socket does not take at once.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

from shoal.config import Limits
from shoal.errors import ConfigurationError, ProtocolError
from shoal.transport.base import Accept, Connection, Listener, Receiver, Wrap, unwrapped
from shoal.transport.dial import dial
from shoal.transport.framed import FramedConnection
from shoal.wire.framing import Buffer

SCHEME = "tcp"
JOIN_BYTES = 64 << 10  # neighbouring buffers are joined up to this size: a copy is cheaper than a write
LINGER_S = 2.0  # a closed connection whose peer neither takes bytes nor closes is cut after this
BACKLOG = 1024


async def listen(address: str, accept: Accept, limits: Limits, wrap: Wrap = unwrapped) -> Listener:
    """Accepts connections at "tcp://host:port"; port 0 picks a free one.

    Raises ConfigurationError when the address is taken, not this machine's, or no address.
    """
    host, port = _host_port(address)
    bound = await _bind(host, port)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _TcpConnection("", accept, limits, wrap), sock=bound, backlog=BACKLOG)
    return _TcpListener(_address(bound.getsockname()), server)


async def connect(
    address: str, receiver: Receiver, limits: Limits, deadline_ms: int, wrap: Wrap = unwrapped
) -> Connection:
    """Connects to "tcp://host:port", trying again until the deadline.

    Raises StartupError when nothing answers in deadline_ms, ConfigurationError for no address.
    """
    host, port = _host_port(address)
    loop = asyncio.get_running_loop()

    async def attempt() -> Connection:
        _, connection = await loop.create_connection(
            lambda: _TcpConnection(address, lambda _: receiver, limits, wrap), host, port
        )
        return connection.face

    return await dial(address, attempt, deadline_ms)


class _TcpListener:
    def __init__(self, address: str, server: asyncio.Server) -> None:
        self.address = address
        self._server = server

    async def close(self) -> None:
        # No wait_closed: on some loops it waits for the connections, which live on.
        self._server.close()


class _TcpConnection(FramedConnection, asyncio.BufferedProtocol):
    _transport: asyncio.Transport
    _linger: asyncio.TimerHandle | None = None

    # --- called by the event loop -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.address = self.address or _address(transport.get_extra_info("peername"))
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.writable()

    def buffer_updated(self, nbytes: int) -> None:
        if self._ended:
            return
        self.received_bytes += nbytes
        try:
            self._decoder.written(nbytes)
        except ProtocolError as error:
            self._refuse(error)

    def eof_received(self) -> None:
        self._break(self._broken_off("closed"))
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._break(self._broken_off(str(exc) if exc else "closed", orderly=exc is None))

    # --- called by FramedConnection ---------------------------------------------------------------

    def _write(self, frame: bytes, payload: Sequence[Buffer]) -> None:
        if self._transport.is_closing():
            return  # broken, and connection_lost is about to say so
        for piece in _joined(frame, payload):
            self._transport.write(piece)

    def _finish(self) -> None:
        # Half-close and read on until the peer closes too: closing with bytes unread would reset
        # the connection and take our last frames from the peer.
        if self._transport.is_closing():
            return
        self._transport.write_eof()
        self._linger = self._loop.call_later(LINGER_S, self._cut, self._transport.get_write_buffer_size())

    def _drop(self) -> None:
        self._transport.abort()

    # --- helpers ----------------------------------------------------------------------------------

    def _cut(self, unsent_before: int) -> None:
        """Ends a closing connection that made no progress since it was last looked at."""
        unsent = self._transport.get_write_buffer_size()
        if 0 < unsent < unsent_before:
            self._linger = self._loop.call_later(LINGER_S, self._cut, unsent)
        else:
            self._transport.abort()

    def _broken_off(self, how: str, orderly: bool = True) -> str:
        unfinished = self._decoder.unfinished()
        if unfinished:
            return f"{self.address} broke off in the middle of {unfinished} ({how})"
        return "" if orderly else f"{self.address} broke off ({how})"


def _joined(frame: bytes, payload: Sequence[Buffer]) -> list[Buffer]:
    """The frame's buffers, with runs of small neighbours joined."""
    runs: list[list[Buffer]] = [[frame]]
    run_bytes = len(frame)
    for piece in payload:
        view = memoryview(piece)
        if not view.nbytes:
            continue
        run_bytes += view.nbytes
        if run_bytes > JOIN_BYTES:
            runs.append([])
            run_bytes = view.nbytes
        runs[-1].append(view.cast("B"))
    return [b"".join(run) if len(run) > 1 else run[0] for run in runs]


async def _bind(host: str, port: int) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, sockaddr = found[0]
        return socket.create_server(sockaddr[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"{host}:{port} is taken, perhaps by another Shoal job; choose another --port or let 0 pick one"
            ) from error
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _host_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        if parts.hostname and parts.port is not None:
            return parts.hostname, parts.port
        reason = "host and port must both be there"
    except ValueError as error:
        reason = str(error)
    raise ConfigurationError(f"{address!r} is no address ({reason}); write it like tcp://127.0.0.1:5555")


def _address(name: Sequence[object]) -> str:
    host, port = name[:2]
    return f"{SCHEME}://[{host}]:{port}" if ":" in str(host) else f"{SCHEME}://{host}:{port}"
