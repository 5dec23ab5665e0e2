"""A TCP connection of frames: payload is received straight into place and sent without joining large buffers.

Runs on uvloop and on asyncio's own loop. The kernel writes payload into the memory that the
receiver admitted (BufferedProtocol); uvloop keeps references to the buffers it sends, asyncio
copies what the socket does not take at once. Little is handed to the socket at a time (HANDOVER_BYTES
or one frame), so that what is urgent overtakes the rest.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Sequence
from typing import cast

from shoal.errors import ProtocolError
from shoal.transport.framed import FramedConnection
from shoal.wire.framing import Buffer

SCHEME = "tcp"
JOIN_BYTES = 64 << 10  # neighbouring buffers are joined up to this size: a copy is cheaper than a write
HANDOVER_BYTES = 256 << 10  # the socket is given another frame while fewer bytes than these wait in its queue
# The kernel's send buffer on a short way. Left to itself it grows to megabytes, which leave the processor's
# cache before the other side reads them; on a long way, where it must hold a whole round trip, it may.
NEAR_BUFFER_BYTES = 256 << 10
FAR_UNSENT_BYTES = 512 << 10  # of the send buffer on a long way, what the kernel holds and cannot send yet
_ROUND_TRIP = struct.Struct("I")  # tcpi_min_rtt, microseconds
_ROUND_TRIP_OFFSET = 148  # in Linux's struct tcp_info
_UNMEASURED = 0xFFFFFFFF


class TcpConnection(FramedConnection, asyncio.BufferedProtocol):
    _transport: asyncio.Transport
    _socket: socket.socket
    _own_address = ""
    _vectored = False  # the transport sends several buffers without joining them

    # --- called by the event loop -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.address = self.address or address_of(transport.get_extra_info("peername"))
        self._own_address = address_of(transport.get_extra_info("sockname"))
        self._vectored = getattr(type(transport), "writelines", None) is not asyncio.WriteTransport.writelines
        self._transport.set_write_buffer_limits(high=HANDOVER_BYTES, low=HANDOVER_BYTES)
        self._socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.round_trip_us <= self._limits.long_link_us:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NEAR_BUFFER_BYTES)
        elif sys.platform.startswith("linux"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, FAR_UNSENT_BYTES)
        self._met()

    def pause_writing(self) -> None:
        self._pause()

    def resume_writing(self) -> None:
        self._resume()

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
        self._break(self._broken_off(str(exc) if exc else "closed", orderly=exc is None))

    @property
    def own_address(self) -> str:
        return self._own_address

    @property
    def round_trip_us(self) -> int:
        """What the kernel has measured on this connection."""
        if not sys.platform.startswith("linux") or self._transport.is_closing():
            return 0
        size = _ROUND_TRIP_OFFSET + _ROUND_TRIP.size
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        measured = int(_ROUND_TRIP.unpack_from(info, _ROUND_TRIP_OFFSET)[0]) if len(info) == size else 0
        return 0 if measured == _UNMEASURED else measured

    # --- called by FramedConnection ---------------------------------------------------------------

    def _write(self, frame: bytes, payload: Sequence[Buffer], files: Sequence[int]) -> None:
        if self._transport.is_closing():
            return  # broken, and connection_lost is about to say so
        pieces = joined(frame, payload)
        if self._vectored:
            self._transport.writelines(pieces)
        else:
            for piece in pieces:
                self._transport.write(piece)

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def _finish(self) -> None:
        # Half-close and read on until the peer closes too: closing with bytes unread would reset
        # the connection and take our last frames from the peer.
        if not self._transport.is_closing():
            self._transport.write_eof()

    def _drop(self) -> None:
        self._transport.abort()

    # --- helpers ----------------------------------------------------------------------------------

    def _met(self) -> None:
        """The sockets are connected."""
        self._open()

    def _broken_off(self, how: str, orderly: bool = True) -> str:
        unfinished = self._decoder.unfinished()
        if unfinished:
            return f"{self.address} broke off in the middle of {unfinished} ({how})"
        return "" if orderly else f"{self.address} broke off ({how})"


def address_of(name: Sequence[object]) -> str:
    """The address of a socket's name, as getsockname and getpeername give it."""
    host, port = name[:2]
    return f"{SCHEME}://[{host}]:{port}" if ":" in str(host) else f"{SCHEME}://{host}:{port}"


def joined(frame: bytes, payload: Sequence[Buffer]) -> list[Buffer]:
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
