"""Frames between two processes of one host and one user, and the memory that they share.

Frames go over a Unix socket whose name lies in no file system (unix(7), abstract), and file
descriptors of arenas go along with them (SCM_RIGHTS): so nothing is left behind when processes are
killed. What lies in shared memory is not sent at all. Payload that is sent after all is received
straight into place, as on TCP.

An address reads shm://HOST/NAME. HOST tells this host, network namespace and user from all others;
who cannot be the same host and user does not connect, and the socket's credentials are checked.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import struct
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from shoal.config import Limits, Tls
from shoal.errors import ConfigurationError, ProtocolError, RefusedError
from shoal.transport.base import Accept, Connection, Listener, Receiver, Wrap, unwrapped
from shoal.transport.dial import dial
from shoal.transport.framed import FramedConnection
from shoal.wire.framing import Buffer

SCHEME = "shm"
BACKLOG = 1024
FILES_MAX = 4  # descriptors that came and were not taken yet
PIECES_MAX = 256  # buffers given to one sendmsg; the system takes 1024
READS_MAX = 16  # in a row, before others of the event loop have their turn
HANDOVER_BYTES = 256 << 10  # given to the socket's queue at a time; what waits beyond can be overtaken
_CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: process, user, group
_ANCILLARY_BYTES = socket.CMSG_SPACE(FILES_MAX * struct.calcsize("i"))


@cache
def here() -> str:
    """This host, network namespace and user, as they stand in addresses."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/net").st_ino
    return f"{boot}.{namespace}.{os.getuid()}"


def reachable(address: str) -> bool:
    """Whether the address is one of this host and user."""
    return address.startswith(f"{SCHEME}://{here()}/")


async def listen(
    address: str, accept: Accept, limits: Limits, wrap: Wrap = unwrapped, _: Tls | None = None
) -> Listener:
    """Accepts connections at "shm://", which picks a name, or at a whole address of this host.

    Raises ConfigurationError when the name is taken, or of another host.
    """
    name = address.removeprefix(f"{SCHEME}://") or f"{here()}/{os.getpid()}-{secrets.token_hex(8)}"
    full = f"{SCHEME}://{name}"
    if not reachable(full):
        raise ConfigurationError(f"{address} is not an address of this host and user; write shm:// to have one picked")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound.bind(_socket_name(full))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            way_out = "write shm:// to have a free name"
            raise ConfigurationError(f"{address} is taken by another listener; {way_out}") from error
        raise ConfigurationError(f"cannot listen at {address}: {error.strerror or error}") from error
    return _ShmListener(full, bound, accept, limits, wrap)


async def connect(
    address: str,
    receiver: Receiver,
    limits: Limits,
    deadline_ms: int,
    wrap: Wrap = unwrapped,
    _: Tls | None = None,
) -> Connection:
    """Connects to an address of this host, trying again until the deadline.

    Raises StartupError when nothing answers in deadline_ms, ConfigurationError for another host's address,
    RefusedError when another user has taken the name: a token must not be told to them.
    """
    if not reachable(address):
        raise ConfigurationError(
            f"{address} is on another host, or belongs to another user: memory cannot be shared with it; use tcp"
        )

    async def attempt() -> Connection:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            await asyncio.get_running_loop().sock_connect(opened, _socket_name(address))
            if (user := _user(opened)) != os.getuid():
                raise RefusedError(
                    f"{address} is in the hands of user {user}, not of {os.getuid()}: its listener is gone, and "
                    f"someone took the name; start the job again"
                )
        except BaseException:
            opened.close()
            raise
        connection = _ShmConnection(opened, address, lambda _: receiver, limits, wrap)
        connection.open()
        return connection.face

    return await dial(address, attempt, deadline_ms)


class _ShmListener:
    def __init__(self, address: str, bound: socket.socket, accept: Accept, limits: Limits, wrap: Wrap) -> None:
        self.address = address
        self._bound = bound
        self._accept = accept
        self._limits = limits
        self._wrap = wrap
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound.fileno(), self._arrivals)

    def _arrivals(self) -> None:
        while True:
            try:
                accepted, _ = self._bound.accept()
            except OSError:
                return  # all that waited are here, or the peer is gone already
            accepted.setblocking(False)
            if _user(accepted) != os.getuid():
                accepted.close()  # the name is visible to other users of the host; the door is not
                continue
            _ShmConnection(accepted, self.address, self._accept, self._limits, self._wrap).open()

    async def close(self) -> None:
        if self._bound.fileno() >= 0:
            self._loop.remove_reader(self._bound.fileno())
            self._bound.close()


class _ShmConnection(FramedConnection):
    shares_memory = True

    def __init__(self, opened: socket.socket, address: str, accept: Accept, limits: Limits, wrap: Wrap) -> None:
        super().__init__(address, accept, limits, wrap)
        self._socket = opened
        self._out: deque[tuple[memoryview, list[int]]] = deque()  # and the descriptors that leave with it
        self._out_bytes = 0
        self._writing = False  # the loop says when the socket takes more
        self._finishing = False
        self._files: deque[int] = deque()

    def open(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._open()

    def take_file(self) -> int | None:
        return self._files.popleft() if self._files else None

    # --- called by the event loop -----------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(READS_MAX):
            if self._socket.fileno() < 0:
                return
            try:
                count, ancillary, _, _ = self._socket.recvmsg_into(
                    [self._decoder.writable()], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._shut(f"{self.address} broke off ({error.strerror or error})")
                return
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._files.extend(struct.unpack(f"{len(data) // 4}i", data))
            if not count:
                unfinished = self._decoder.unfinished()
                self._shut(f"{self.address} broke off in the middle of {unfinished}" if unfinished else "")
                return
            if self._ended:
                continue  # closing: read on until the peer closes, too
            self.received_bytes += count
            try:
                self._decoder.written(count)
                if len(self._files) > FILES_MAX:
                    raise ProtocolError(f"{self.address} sent {len(self._files)} descriptors that nothing asked for")
            except ProtocolError as error:
                self._refuse(error)
            except BaseException as error:  # the receiver's own error: the loop shows it
                self._shut(f"{type(error).__name__}: {error}")
                raise

    def _writable(self) -> None:
        while self._out:
            pieces, files = self._next_pieces()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(files)}i", *files))] if files else []
            try:
                sent = self._socket.sendmsg(pieces, rights)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._loop.call_soon(self._shut, f"{self.address} broke off ({error.strerror or error})")
                return
            _close(files)
            self._out_bytes -= sent
            while sent:
                first, _ = self._out.popleft()
                if len(first) > sent:
                    self._out.appendleft((first[sent:], []))
                sent -= min(sent, len(first))
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._socket.fileno())
        if self._paused and self._out_bytes <= HANDOVER_BYTES:
            self._resume()
        if self._finishing and not self._out:
            self._half_close()

    # --- called by FramedConnection ---------------------------------------------------------------

    def _write(self, frame: bytes, payload: Sequence[Buffer], files: Sequence[int]) -> None:
        if self._socket.fileno() < 0:
            return
        pieces = [memoryview(piece).cast("B") for piece in (frame, *payload) if memoryview(piece).nbytes]
        self._out.append((pieces[0], [os.dup(number) for number in files]))
        self._out.extend((piece, []) for piece in pieces[1:])
        self._out_bytes += sum(len(piece) for piece in pieces)
        if not self._writing:
            self._writable()
        if self._out_bytes > HANDOVER_BYTES:
            self._pause()

    def _unsent_bytes(self) -> int:
        return self._out_bytes

    def _finish(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._finishing = True
        if not self._out:
            self._half_close()

    def _drop(self) -> None:
        self._shut("")

    # --- helpers ----------------------------------------------------------------------------------

    def _half_close(self) -> None:
        """The peer reads to the end before it closes, so our last words reach it."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._shut("")

    def _shut(self, reason: str) -> None:
        """The connection is over: nothing is sent or received any more."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        while self._out:
            _close(self._out.popleft()[1])
        self._out_bytes = 0
        _close(list(self._files))
        self._files.clear()
        self._break(reason)

    def _next_pieces(self) -> tuple[list[memoryview], list[int]]:
        """What one call can send: descriptors go with the first byte, so at most one frame that has any, and first."""
        first, files = self._out[0]
        pieces = [first]
        for index in range(1, min(len(self._out), PIECES_MAX)):
            piece, others = self._out[index]
            if others:
                break
            pieces.append(piece)
        return pieces, files


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def _user(connected: socket.socket) -> int:
    """Who is at the other end, as the kernel knows."""
    _, user, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)


def _socket_name(address: str) -> str:
    """In the abstract namespace: it is gone with the listener."""
    return f"\0shoal/{address.removeprefix(f'{SCHEME}://')}"
