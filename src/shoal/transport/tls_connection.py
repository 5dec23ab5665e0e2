"""A TCP connection of frames, encrypted: whoever has no certificate of the job's authority is heard no further.

Payload is decrypted straight into place, and encrypted a little at a time as the socket takes it, so
that what is urgent overtakes here, too. What a peer sends is seen by TLS alone until its certificate is
good. A handshake that fails ends in one clear reason on both sides: TLS's own alert tells the peer.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import deque
from collections.abc import Sequence

from shoal.config import Limits
from shoal.errors import RefusedError
from shoal.transport.base import Accept, Wrap
from shoal.transport.tcp_connection import TcpConnection, joined
from shoal.transport.tls import ALERT, Channel, reason
from shoal.wire.framing import Buffer

CIPHERTEXT_BYTES = 256 << 10  # received at once
RECORDS_BYTES = 256 << 10  # encrypted at once, which the socket is handed then

_of_thread = threading.local()


class TlsConnection(TcpConnection):
    """A TcpConnection whose bytes go through a Channel."""

    def __init__(
        self,
        address: str,
        accept: Accept,
        limits: Limits,
        wrap: Wrap,
        channel: Channel,
        secured: asyncio.Future[None] | None = None,
    ) -> None:
        """secured: of a dial, to be told how the handshake ended. accept is called then; without it, at once."""
        super().__init__(address, accept, limits, wrap)
        self._channel = channel
        self._secured = secured
        self._plain: deque[memoryview] = deque()  # waits to be encrypted
        self._plain_bytes = 0
        self._heard = False  # any byte of the peer
        self._full = False  # the socket has enough to send
        self._finishing = False  # once nothing waits, the stream ends
        self._silent = False  # nothing goes through the channel any more

    def give_up(self) -> None:
        """Nobody waits for the handshake any longer."""
        if not self._silent:  # else last words are leaving
            self._drop()

    # --- called by the event loop -----------------------------------------------------------------

    def pause_writing(self) -> None:
        self._full = True
        self._pause()

    def resume_writing(self) -> None:
        self._full = False
        self._encrypt()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _ciphertext()

    def buffer_updated(self, nbytes: int) -> None:
        secured = self._channel.secured
        if self._silent or (self._ended and secured):
            return
        self._heard = True
        self._channel.incoming(_ciphertext()[:nbytes])
        if secured or self._shake_hands():
            self._decrypt()

    def eof_received(self) -> None:
        if self._channel.secured:
            why = self._broken_off("closed without TLS's own end: it died, or someone cut the line", orderly=False)
        else:
            self._tell(ConnectionResetError("closed during the TLS handshake"))
            why = self._broken_off("closed during the TLS handshake", orderly=not self._heard)
        self._break(why)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell(exc or ConnectionResetError("closed during the TLS handshake"))
        super().connection_lost(exc)
        self._silence()
        del self._channel  # tens of kilobytes, which would wait for the garbage collector

    # --- called by FramedConnection ---------------------------------------------------------------

    def _write(self, frame: bytes, payload: Sequence[Buffer], files: Sequence[int]) -> None:
        if self._transport.is_closing() or self._silent:
            return
        for piece in joined(frame, payload):
            self._plain.append(memoryview(piece))
            self._plain_bytes += len(self._plain[-1])
        self._encrypt()
        if self._plain:
            self._pause()

    def _unsent_bytes(self) -> int:
        return self._plain_bytes + super()._unsent_bytes()

    def _finish(self) -> None:
        self._finishing = True
        self._encrypt()

    def _drop(self) -> None:
        self._silence()
        super()._drop()

    # --- helpers ----------------------------------------------------------------------------------

    def _met(self) -> None:
        if self._secured is None:
            self._open()  # a stranger, who is counted from now on
        self._shake_hands()

    def _shake_hands(self) -> bool:
        """Go on with the handshake; whether it is over, and well."""
        try:
            self._channel.shake_hands()
        except ssl.SSLError as error:
            self._fail(error)
            return False
        self._flush()
        if not self._channel.secured:
            return False
        if self._secured is not None:
            self._open()
        self._tell(None)
        self._encrypt()
        return True

    def _decrypt(self) -> None:
        """Hand on what is there."""
        while not self._ended:
            try:
                count = self._channel.read(self._decoder.writable())
            except ssl.SSLError as error:
                self._fail(error)
                return
            if count == 0:
                super().eof_received()
                return
            super().buffer_updated(count or 0)  # nothing, too: it gives back what `writable` lent
            if count is None:
                return

    def _encrypt(self) -> None:
        """Let the socket have what it takes of what waits, then see what else there is to do."""
        if self._silent or not self._channel.secured:
            return
        while self._plain and not self._full:
            try:
                self._fill_records()
            except ssl.SSLError as error:
                self._fail(error)
                return
            self._flush()
        if self._plain:
            return
        if self._finishing:
            self._half_close()
        elif self._paused and not self._full:
            self._resume()

    def _fill_records(self) -> None:
        """Encrypt as much as is handed to the socket at once."""
        while self._plain and self._channel.outgoing_bytes < RECORDS_BYTES:
            first = self._plain[0]
            count = self._channel.write(first[:RECORDS_BYTES])
            self._plain_bytes -= count
            if count < len(first):
                self._plain[0] = first[count:]
            else:
                self._plain.popleft()

    def _fail(self, error: ssl.SSLError) -> None:
        """TLS has come to an end: tell whoever waits here, and the peer by an alert."""
        words = f"{self.address}: {reason(error)}"
        self._tell(RefusedError(words))
        self._part(words)
        if not (self._channel.secured or self._channel.outgoing_bytes or self._transport.is_closing()):
            self._transport.write(ALERT)
        self._half_close(politely=False)

    def _half_close(self, politely: bool = True) -> None:
        """The peer reads to the end before it closes, so our last words reach it."""
        self._silence()
        if self._transport.is_closing():
            return
        if politely:
            try:
                self._channel.finish()
            except ssl.SSLError:
                pass  # the peer broke the stream meanwhile: it learns of the end from the socket
        self._flush()
        self._transport.write_eof()

    def _silence(self) -> None:
        """Nothing goes through the channel any more; let go of what waited."""
        self._silent = True
        self._plain.clear()
        self._plain_bytes = 0

    def _flush(self) -> None:
        data = self._channel.outgoing()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _tell(self, error: Exception | None) -> None:
        """How the handshake ended, to whoever dialled; the first word counts."""
        if self._secured is None or self._secured.done():
            return
        if error is None:
            self._secured.set_result(None)
        else:
            self._secured.set_exception(error)
            self._secured.exception()  # whether or not anyone still waits, it has been told


def _ciphertext() -> memoryview:
    """Where this thread's loop receives what is encrypted; it is taken from there before anything else comes."""
    buffer: memoryview | None = getattr(_of_thread, "ciphertext", None)
    if buffer is None:
        buffer = _of_thread.ciphertext = memoryview(bytearray(CIPHERTEXT_BYTES))
    return buffer
