"""What every connection does, whatever carries its bytes: frames in and out, and one clear end.

Every connection that was opened ends in exactly one `lost`. A ProtocolError ends it on both sides
with the same words: the side that saw it answers Refused before it closes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from shoal.config import Limits
from shoal.errors import ProtocolError
from shoal.transport.base import Accept, Connection, Receiver, Wrap
from shoal.wire import messages as m
from shoal.wire.framing import Buffer, Decoder, encode


class FramedConnection(ABC):
    """A Connection over `_write`, `_finish` and `_drop`, which a transport provides."""

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

    def send(self, message: m.Message, payload: Sequence[Buffer] = ()) -> None:
        if self._ended:
            return
        self._send(message, payload)

    def close(self) -> None:
        if not self._ended:
            self._end("")
            self._finish()

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
            self._finish()

    def _break(self, reason: str) -> None:
        """No more bytes come, for this reason ("": the peer closed)."""
        if not self._ended:
            self._end(reason)

    @abstractmethod
    def _write(self, frame: bytes, payload: Sequence[Buffer]) -> None:
        """Queues these bytes."""

    @abstractmethod
    def _finish(self) -> None:
        """Closes once what is queued has been sent."""

    @abstractmethod
    def _drop(self) -> None:
        """Closes now, whatever is queued."""

    # --- helpers ----------------------------------------------------------------------------------

    def _send(self, message: m.Message, payload: Sequence[Buffer]) -> None:
        payload_bytes = sum(memoryview(piece).nbytes for piece in payload)
        frame = encode(message, payload_bytes)
        self.sent_bytes += len(frame) + payload_bytes
        self._write(frame, payload)

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
