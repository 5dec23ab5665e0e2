"""What every connection does, whatever carries its bytes: frames in and out, and one clear end.

Every connection that was opened ends in exactly one `lost`. A ProtocolError ends it on both sides
with the same words: the side that saw it answers Refused before it closes.

A transport that has enough to send says so (`_pause`, `_resume`); until it wants more, frames wait in
a queue where urgent ones overtake. What waits is bounded: the machines send nothing twice before
resend_ms of silence, so a peer that takes its bytes is sent what it asked for; one that takes nothing
for stall_ms while more than queue_bytes_max wait for it is cut, and the memory is let go.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from shoal.config import Limits
from shoal.errors import ProtocolError
from shoal.transport.base import Accept, Connection, Receiver, Wrap
from shoal.transport.queue import Frame, Queue
from shoal.wire import messages as m
from shoal.wire.framing import Buffer, Decoder, encode

LINGER_S = 2.0  # a closed connection whose peer neither takes bytes nor closes is cut after this


class FramedConnection(ABC):
    """A Connection over `_write`, `_finish` and `_drop`, which a transport provides."""

    shares_memory = False

    def __init__(self, address: str, accept: Accept, limits: Limits, wrap: Wrap) -> None:
        self.address = address
        self.received_bytes = 0
        self.sent_bytes = 0
        self._accept = accept
        self._wrap = wrap
        self._decoder = Decoder(limits, self._admit, self._deliver)
        self._loop = asyncio.get_running_loop()
        self.face: Connection = self  # what the receiver knows this connection by
        self._receiver: Receiver | None = None
        self._ended = False
        self._limits = limits
        self._queue = Queue()
        self._written_bytes = 0  # taken out of the queue, or past it
        self._broken = False
        self._paused = False  # the transport has enough to send
        self._closing = False  # what is queued still leaves, then the connection is closed
        self._stall: asyncio.TimerHandle | None = None  # looks whether the peer takes anything
        self._linger: asyncio.TimerHandle | None = None  # the same, of a connection that is closing

    @property
    def own_address(self) -> str:
        return ""

    @property
    def round_trip_us(self) -> int:
        return 0

    @property
    def queued_bytes(self) -> int:
        return self._queue.held_bytes + self._unsent_bytes()

    def send(self, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        if self._ended:
            return
        assert self.shares_memory or not files, "only a connection that shares memory takes files along"
        self._send(message, payload, files)

    @property
    def queue(self) -> Queue:
        return self._queue

    def share(self, queue: Queue) -> None:
        assert not self._queue, "only a connection on which nothing waits may take part in another's queue"
        self._queue = queue
        queue.users += 1
        if not self._paused:
            self._resume()

    def discard(self) -> None:
        self._decoder.discard()

    def take_file(self) -> int | None:
        return None

    def allow(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder.allow(limits)

    def close(self) -> None:
        if not self._ended:
            self._end("")
            self._close()

    def cut(self, reason: str) -> None:
        self._break(reason)
        self._drop()

    # --- for the transport ------------------------------------------------------------------------

    def _open(self) -> None:
        """The peer is there: from now on frames arrive."""
        try:
            self.face = self._wrap(self)
            self._receiver = self._accept(self.face)
        except BaseException:
            self._end("")
            self._drop()
            raise

    def _refuse(self, error: ProtocolError) -> None:
        """The peer sent what it should not have: tell it so, and close."""
        if not self._ended:
            self._send(m.Refused("", str(error)), ())
            self._end(str(error))
            self._close()

    def _break(self, reason: str) -> None:
        """No more bytes come or leave, for this reason ("": the peer closed)."""
        if not self._broken:
            self._broken = True
            self._queue.users -= 1
            if not self._queue.users:
                self._queue.clear()
        for timer in (self._stall, self._linger):
            if timer is not None:
                timer.cancel()
        if not self._ended:
            self._end(reason)

    def _part(self, reason: str) -> None:
        """No more bytes come, for this reason; last ones leave, and the peer has LINGER_S to take them."""
        self._break(reason)
        self._linger = self._loop.call_later(LINGER_S, self._drop)

    def _pause(self) -> None:
        """The transport has enough to send: what is sent now waits."""
        self._paused = True

    def _resume(self) -> None:
        """The transport wants more: what is most urgent leaves, until it has enough again."""
        self._paused = False
        while self._queue and not self._paused:
            frame = self._queue.take()
            self._written_bytes += frame.nbytes
            self._write(frame.head, frame.payload, ())
        if self._closing and not self._queue:
            self._closing = False
            self._finish()

    def _unsent_bytes(self) -> int:
        """How many bytes the transport itself has taken and not sent yet."""
        return 0

    @abstractmethod
    def _write(self, frame: bytes, payload: Sequence[Buffer], files: Sequence[int]) -> None:
        """Sends these bytes after those before; may call `_pause`."""

    @abstractmethod
    def _finish(self) -> None:
        """Closes once what was written has been sent."""

    @abstractmethod
    def _drop(self) -> None:
        """Closes now, whatever is queued."""

    # --- helpers ----------------------------------------------------------------------------------

    def _send(self, message: m.Message, payload: Sequence[Buffer], files: Sequence[int] = ()) -> None:
        payload_bytes = sum(memoryview(piece).nbytes for piece in payload)
        frame = encode(message, payload_bytes)
        self.sent_bytes += len(frame) + payload_bytes
        if files or not (self._paused or self._queue):  # files cannot wait: their sender may close them
            self._written_bytes += len(frame) + payload_bytes
            self._write(frame, payload, files)
        else:
            self._queue.put(message, Frame(frame, tuple(payload) if payload_bytes else (), len(frame) + payload_bytes))
        if self._stall is None and self.queued_bytes > self._limits.queue_bytes_max:
            self._watch()

    def _watch(self) -> None:
        """Look again after stall_ms whether the peer took anything."""
        taken = self._written_bytes - self._unsent_bytes()
        self._stall = self._loop.call_later(self._limits.stall_ms / 1000, self._cut_if_stalled, taken)

    def _cut_if_stalled(self, taken_before: int) -> None:
        self._stall = None
        if self._ended or self.queued_bytes <= self._limits.queue_bytes_max:
            return
        if self._written_bytes - self._unsent_bytes() > taken_before:
            self._watch()
            return
        self._break(
            f"{self.address} took nothing in stall_ms={self._limits.stall_ms} while {self.queued_bytes} bytes waited "
            f"for it, more than queue_bytes_max={self._limits.queue_bytes_max}: its process hangs or the network "
            f"is down; raise SHOAL_QUEUE_BYTES_MAX or SHOAL_STALL_MS if neither is so"
        )
        self._drop()

    def _close(self) -> None:
        """Closes once what waits has left, or the peer does not take it."""
        self._linger = self._loop.call_later(LINGER_S, self._cut_if_idle, self.queued_bytes)
        self._closing = bool(self._queue)
        if not self._closing:
            self._finish()

    def _cut_if_idle(self, queued_before: int) -> None:
        """Ends a closing connection that made no progress since it was last looked at."""
        queued = self.queued_bytes
        if 0 < queued < queued_before:
            self._linger = self._loop.call_later(LINGER_S, self._cut_if_idle, queued)
        else:
            self._break("")
            self._drop()

    def _end(self, reason: str) -> None:
        self._ended = True
        self._decoder.stop()
        if self._receiver is not None:
            # Later, so that no receiver is called from within its own call of send or close.
            self._loop.call_soon(self._receiver.lost, self.face, reason)

    def _admit(self, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        assert self._receiver is not None
        return self._receiver.admit(self.face, message, payload_bytes)

    def _deliver(self, message: m.Message, delivered: bool) -> None:
        assert self._receiver is not None
        self._receiver.received(self.face, message, delivered)
