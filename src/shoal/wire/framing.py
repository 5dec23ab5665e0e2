"""Any bytes, cut anywhere, become messages or exactly one ProtocolError.

A frame on the wire, little endian:

    magic "SHOL" | protocol u16 | reserved u16 | message_bytes u32 | payload_bytes u64
    message_bytes of msgpack (one of messages.Any)
    payload_bytes of raw tensor bytes

The decoder has no I/O. Whoever reads asks it where the next bytes go (`writable`), puts them there,
and says how many they were (`written`). Headers and messages pass through a scratch buffer, which
a decoder borrows while it holds part of one, so that idle connections take next to no memory; large
payload lands straight in the memory that the receiver admitted it to. Limits are checked before
anything is allocated, and memory grows only with bytes that have arrived.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from shoal.config import PROTOCOL, Limits
from shoal.errors import ProtocolError
from shoal.wire import messages as m

MAGIC = b"SHOL"
HEADER = struct.Struct("<4sHHIQ")
SCRATCH_BYTES = 64 << 10  # read-ahead of headers and messages, and of payload too small to be read in place

Buffer = bytes | bytearray | memoryview  # C-contiguous, of any item type
Admit = Callable[[m.Message, int], Sequence[memoryview] | None]
Deliver = Callable[[m.Message, bool], None]

# Who begins so instead, as far as it can be told.
_OTHERS = {
    b"\x16\x03": "the peer speaks TLS and this side does not; give both --tls-cert, --tls-key and --tls-ca, or neither",
    b"\x15\x03": "the peer wants TLS and this side does not speak it; give both --tls-cert, --tls-key and --tls-ca",
    **dict.fromkeys((b"GET ", b"POST", b"HEAD", b"PUT "), "the peer speaks HTTP; this is the port of a Shoal process"),
}
_UNKNOWN = "the peer is not a Shoal process, or the stream is broken"

SCRATCHES_IDLE_MAX = 16  # kept for the next decoder that needs one

_NOTHING = memoryview(bytearray())
_idle: list[memoryview] = []  # scratch buffers that no decoder holds; used from any thread
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[m.Message] = msgspec.msgpack.Decoder(m.Any)


def encode(message: m.Message, payload_bytes: int = 0) -> bytes:
    """The header and message of a frame; exactly payload_bytes of payload must follow them."""
    body = _ENCODER.encode(message)
    return HEADER.pack(MAGIC, PROTOCOL, 0, len(body), payload_bytes) + body


class Decoder:
    """Parses one stream of frames.

    admit(message, payload_bytes) is asked once for each frame with a payload, and returns where it
    goes (writable memory, the lengths adding up to payload_bytes) or None to have it discarded; it
    may raise ProtocolError. deliver(message, delivered) is called when the whole frame is there;
    delivered is False where the payload was discarded. After a ProtocolError, or `stop`, every
    further byte is swallowed and neither is called again.
    """

    def __init__(self, limits: Limits, admit: Admit, deliver: Deliver) -> None:
        self._limits = limits
        self._admit = admit
        self._deliver = deliver
        self._stopped = False
        self._scratch = _NOTHING
        self._start = self._end = 0  # the unread part of the scratch buffer
        self._direct = False  # the view last handed out belongs to a target
        self._step: Callable[[], bool] = self._take_header
        self._message_bytes = 0
        self._payload_bytes = 0
        self._payload_left = 0
        self._message: m.Message | None = None  # whose payload is arriving
        self._targets: deque[memoryview] | None = None  # what is still to be filled; None: discard

    def writable(self, direct_bytes: int = SCRATCH_BYTES) -> memoryview:
        """Where the next bytes of the stream go; never empty. Valid until `written` or `stop`.

        Targets with fewer than direct_bytes left are filled by way of the scratch buffer, so that
        many small ones cost one read.
        """
        targets = self._targets
        if targets and len(targets[0]) >= direct_bytes:
            self._direct = True
            return targets[0]
        self._direct = False
        if self._start == self._end:
            if len(self._scratch) != SCRATCH_BYTES:
                self._scratch = _borrow()
            self._start = self._end = 0
        elif self._end == len(self._scratch):
            self._make_room()
        return self._scratch[self._end :]

    def written(self, count: int) -> None:
        """`count` bytes were put at the start of what `writable` returned last.

        Raises ProtocolError, once, when the stream turns out not to be one of frames, and whatever
        admit and deliver raise.
        """
        if self._stopped:
            self._give_back()
            return
        if self._direct:
            self._advance(count)
        else:
            self._end += count
        try:
            while self._step():
                pass
        except BaseException:  # the receiver's own errors too: a broken stream is never resumed
            self.stop()
            raise
        finally:
            if self._start == self._end:
                self._give_back()

    def feed(self, data: Buffer) -> None:
        """Copies `data` in, as the stream's next bytes. Raises ProtocolError like `written`."""
        view = memoryview(data)
        rest = view.cast("B") if view.nbytes else view[:0]
        while len(rest) and not self._stopped:
            target = self.writable(direct_bytes=1)
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            rest = rest[count:]
            self.written(count)

    def stop(self) -> None:
        """Calls no one any more, and lets go of the targets."""
        self._stopped = True
        self._targets = None
        self._message = None
        self._give_back()

    def discard(self) -> None:
        """The rest of the payload that is arriving goes nowhere; its frame is delivered as discarded."""
        self._targets = None
        self._direct = False

    def allow(self, limits: Limits) -> None:
        """From the next frame on, these limits hold."""
        self._limits = limits

    def unfinished(self) -> str:
        """What the stream breaks off in, were it to end now; "" between frames."""
        if self._message is not None:
            arrived = self._payload_bytes - self._payload_left
            return f"{_tag(self._message)} with {arrived} of {self._payload_bytes} payload bytes"
        if self._message_bytes:
            return f"a message with {self._end - self._start} of {self._message_bytes} bytes"
        if self._end > self._start:
            return f"a header with {self._end - self._start} of {HEADER.size} bytes"
        return ""

    # The three steps of a frame: each returns False when it needs more bytes (or was stopped).

    def _take_header(self) -> bool:
        arrived = self._end - self._start
        if arrived < HEADER.size:
            # Wrong bytes are answered at once, not when (or if) a full header has arrived.
            self._check_magic(bytes(self._scratch[self._start : self._start + min(arrived, len(MAGIC))]))
            return False
        magic, protocol, _, message_bytes, payload_bytes = HEADER.unpack_from(self._scratch, self._start)
        self._check_magic(magic)
        if protocol != PROTOCOL:
            raise ProtocolError(
                f"peer speaks protocol {protocol}, this is {PROTOCOL}: install the same shoal version on both"
            )
        if not message_bytes:
            raise ProtocolError("frame announces a message of 0 bytes; every frame carries a message")
        self._check_limit("message", message_bytes, self._limits.message_bytes_max)
        self._check_limit("payload", payload_bytes, self._limits.payload_bytes_max)
        self._start += HEADER.size
        self._message_bytes = message_bytes
        self._payload_bytes = self._payload_left = payload_bytes
        self._step = self._take_message
        return True

    def _take_message(self) -> bool:
        stop = self._start + self._message_bytes
        if self._end < stop:
            return False
        message = _decode(self._scratch[self._start : stop])
        self._start = stop
        self._message_bytes = 0
        if not self._payload_bytes:
            self._step = self._take_header
            self._deliver(message, True)
            return not self._stopped
        targets = self._admit(message, self._payload_bytes)
        if self._stopped:  # by the receiver, while it was asked
            return False
        self._targets = None if targets is None else _fitting(message, targets, self._payload_bytes)
        self._message = message
        self._step = self._take_payload
        return True

    def _take_payload(self) -> bool:
        self._drain_scratch()
        if self._payload_left:
            return False
        message, delivered = self._message, self._targets is not None
        assert message is not None
        self._message = self._targets = None
        self._step = self._take_header
        self._deliver(message, delivered)
        return not self._stopped

    def _drain_scratch(self) -> None:
        """Copies payload that was read ahead to where it belongs."""
        available = min(self._end - self._start, self._payload_left)
        if self._targets is None:
            self._payload_left -= available
            self._start += available
            return
        while available:
            target = self._targets[0]
            count = min(len(target), available)
            target[:count] = self._scratch[self._start : self._start + count]
            self._start += count
            available -= count
            self._advance(count)

    def _advance(self, count: int) -> None:
        """`count` bytes of the first target are filled."""
        assert self._targets is not None
        self._payload_left -= count
        rest = self._targets.popleft()[count:]
        if len(rest):
            self._targets.appendleft(rest)

    def _make_room(self) -> None:
        """Moves an unfinished header or message to the front of a buffer it may grow in.

        The buffer doubles as bytes arrive: a peer that announces much and sends little costs little.
        """
        arrived = self._end - self._start
        size = len(self._scratch)
        if arrived == size:
            size = min(2 * size, self._message_bytes)
        scratch = self._scratch
        if size > SCRATCH_BYTES:
            scratch = memoryview(bytearray(size))
        elif len(scratch) != SCRATCH_BYTES:
            scratch = _borrow()
        scratch[:arrived] = self._scratch[self._start : self._end]
        if scratch is not self._scratch:
            self._give_back()
        self._scratch = scratch
        self._start, self._end = 0, arrived

    def _give_back(self) -> None:
        """Let go of the scratch buffer."""
        if len(self._scratch) == SCRATCH_BYTES and len(_idle) < SCRATCHES_IDLE_MAX:
            _idle.append(self._scratch)
        self._scratch = _NOTHING
        self._start = self._end = 0

    def _check_magic(self, seen: bytes) -> None:
        if not MAGIC.startswith(seen):
            guess = next((word for start, word in _OTHERS.items() if seen.startswith(start)), _UNKNOWN)
            raise ProtocolError(f"frame starts with {seen!r}, not {MAGIC!r}: {guess}")

    def _check_limit(self, part: str, announced: int, limit: int) -> None:
        if announced <= limit:
            return
        if not self._limits.payload_bytes_max:
            raise ProtocolError(
                f"frame announces a {part} of {announced} bytes before its handshake, where the limit is {limit}"
            )
        raise ProtocolError(
            f"frame announces a {part} of {announced} bytes, the limit is {part}_bytes_max={limit}; "
            f"raise SHOAL_{part.upper()}_BYTES_MAX on every node if it is meant"
        )


def _borrow() -> memoryview:
    """A scratch buffer, the borrower's alone."""
    try:
        return _idle.pop()
    except IndexError:
        return memoryview(bytearray(SCRATCH_BYTES))


def _decode(body: memoryview) -> m.Message:
    try:
        return _DECODER.decode(body)
    # Beside its own errors msgspec lets these two through: strings that are not UTF-8, deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        seen = bytes(body[:16])
        raise ProtocolError(f"message of {len(body)} bytes starting {seen!r} cannot be decoded: {error}") from error


def _fitting(message: m.Message, targets: Sequence[memoryview], payload_bytes: int) -> deque[memoryview]:
    """The targets as flat bytes, those of no length left out."""
    flat = deque(target.cast("B") for target in targets if target.nbytes)
    room = sum(map(len, flat))
    if room != payload_bytes:
        raise ProtocolError(f"{_tag(message)} carries {payload_bytes} payload bytes where {room} are expected")
    return flat


def _tag(message: m.Message) -> str:
    return type(message).__name__
