"""Any bytes in any split give messages or exactly one ProtocolError; what is encoded comes back."""

from __future__ import annotations

import struct
import tracemalloc
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.config import PROTOCOL, Limits
from shoal.errors import ProtocolError
from shoal.wire import messages as m
from shoal.wire.framing import HEADER, MAGIC, SCRATCH_BYTES, Decoder, encode

SMALL = Limits(message_bytes_max=1000, payload_bytes_max=5000)
MESSAGE_TYPES = typing.get_args(m.Any)


@dataclass
class Collector:
    """Admits payload into memory cut as `cuts` says, in turn; None discards."""

    limits: Limits = SMALL
    cuts: Sequence[Sequence[int] | None] = ()
    frames: list[tuple[m.Message, bytes | None]] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.decoder = Decoder(self.limits, self.admit, self.deliver)
        self.memory: bytearray | None = None

    def admit(self, message: m.Message, payload_bytes: int) -> list[memoryview] | None:
        cut = self.cuts[self.asked % len(self.cuts)] if self.cuts else ()
        self.asked += 1
        if cut is None:
            self.memory = None
            return None
        self.memory = bytearray(payload_bytes)
        edges = [0, *sorted(edge % (payload_bytes + 1) for edge in cut), payload_bytes]
        view = memoryview(self.memory)
        return [view[start:stop] for start, stop in pairwise(edges)]

    def deliver(self, message: m.Message, delivered: bool) -> None:
        payload = bytes(self.memory) if delivered and self.memory is not None else b"" if delivered else None
        self.frames.append((message, payload))
        self.memory = None


def split(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, again and again."""
    start, turn = 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        yield data[start : start + size]
        start, turn = start + size, turn + 1


def read_like_a_socket(decoder: Decoder, pieces: Iterator[bytes]) -> None:
    """Fills what `writable` hands out, as a transport that receives in place does."""
    for piece in pieces:
        while piece:
            target = decoder.writable()
            count = min(len(target), len(piece))
            target[:count] = piece[:count]
            decoder.written(count)
            piece = piece[count:]


def values(kind: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Values of a field's type, any that msgpack can carry."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    plain: dict[typing.Any, st.SearchStrategy[typing.Any]] = {
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=20),
        bool: st.booleans(),
        bytes: st.binary(max_size=20),
        type(None): st.none(),
    }
    if kind in plain:
        return plain[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.builds(kind, **{item.name: values(item.type) for item in msgspec.structs.fields(kind)})
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(option) for option in arguments])
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    raise AssertionError(f"no strategy for {kind}")


MESSAGES = st.one_of([values(kind) for kind in MESSAGE_TYPES])
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5)
CUTS = st.lists(st.none() | st.lists(st.integers(0, 5000), max_size=4), max_size=3)
FRAMES = st.lists(st.tuples(MESSAGES, st.binary(max_size=600)), max_size=6)


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_as_it_was(kind: type[m.Message]) -> None:
    @settings(max_examples=20, deadline=None)
    @given(message=values(kind))
    def roundtrip(message: m.Message) -> None:
        collector = Collector(Limits())
        collector.decoder.feed(encode(message, 0))
        assert collector.frames == [(message, b"")]
        assert type(collector.frames[0][0]) is kind

    roundtrip()


def test_the_union_of_messages_misses_none() -> None:
    assert set(MESSAGE_TYPES) == set(m.Message.__subclasses__())


@settings(max_examples=150, deadline=None)
@given(frames=FRAMES, sizes=SIZES, cuts=CUTS, like_a_socket=st.booleans())
def test_any_split_of_a_stream_parses_alike(
    frames: list[tuple[m.Message, bytes]], sizes: list[int], cuts: list[list[int] | None], like_a_socket: bool
) -> None:
    stream = b"".join(encode(message, len(payload)) + payload for message, payload in frames)
    collector = Collector(Limits(), cuts)
    if like_a_socket:
        read_like_a_socket(collector.decoder, split(stream, sizes))
    else:
        for piece in split(stream, sizes):
            collector.decoder.feed(piece)
    expected: list[tuple[m.Message, bytes | None]] = []
    asked = 0
    for message, payload in frames:
        discarded = bool(payload and cuts) and cuts[asked % len(cuts)] is None
        asked += bool(payload)
        expected.append((message, None if discarded else payload))
    assert collector.frames == expected
    assert collector.decoder.unfinished() == ""


def damaged(frames: list[tuple[m.Message, bytes]], place: int, patch: bytes) -> bytes:
    stream = b"".join(encode(message, len(payload)) + payload for message, payload in frames)
    place %= len(stream) + 1
    return stream[:place] + patch + stream[place + len(patch) :]


PLAUSIBLE = st.builds(  # past the header, so that the message's decoder is fuzzed too
    lambda body, payload: HEADER.pack(MAGIC, PROTOCOL, 0, len(body), payload) + body,
    st.binary(min_size=1, max_size=200)
    | st.builds(
        lambda kind, rest: b"\x95" + msgspec.msgpack.encode(kind.__name__) + rest,
        st.sampled_from(MESSAGE_TYPES),
        st.binary(max_size=100),
    ),
    st.integers(0, 300),
)
BYTES = st.one_of(
    st.binary(max_size=400),
    st.binary(max_size=100).map(lambda rest: MAGIC + rest),
    PLAUSIBLE,
    st.builds(damaged, FRAMES, st.integers(0, 5000), st.binary(min_size=1, max_size=8)),
)


@settings(max_examples=600, deadline=None)
@given(data=BYTES, sizes=SIZES, like_a_socket=st.booleans())
def test_any_bytes_give_messages_or_one_protocol_error(data: bytes, sizes: list[int], like_a_socket: bool) -> None:
    collector = Collector()
    errors = 0
    for piece in split(data, sizes):
        try:
            if like_a_socket:
                read_like_a_socket(collector.decoder, iter([piece]))
            else:
                collector.decoder.feed(piece)
        except ProtocolError:
            errors += 1
            frames_before = len(collector.frames)
    assert errors <= 1
    if errors:
        assert len(collector.frames) == frames_before  # nothing is delivered after it


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "not b'SHOL'"),
        (b"SHOP", "b'SHOP'"),
        (
            HEADER.pack(MAGIC, 99, 0, 5, 0),
            f"peer speaks protocol 99, this is {PROTOCOL}: install the same shoal version on both",
        ),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 1001, 0), "message of 1001 bytes, the limit is message_bytes_max=1000"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 2**32 - 1, 0), "SHOAL_MESSAGE_BYTES_MAX"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 5, 5001), "payload of 5001 bytes, the limit is payload_bytes_max=5000"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 5, 2**64 - 1), "SHOAL_PAYLOAD_BYTES_MAX"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 0, 0), "0 bytes"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 4, 0) + b"\x91\xa2No", "message of 4 bytes starting b'\\x91\\xa2No'"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 8, 0) + b"\x92\xa4Stop\xa1\xff", "utf-8"),
        (
            HEADER.pack(MAGIC, PROTOCOL, 0, 907, 0) + b"\x94\xa4Left\x01\x01" + b"\x91" * 899 + b"\xc0",
            "cannot be decoded",
        ),
    ],
)
def test_wrong_bytes_are_named(data: bytes, words: str) -> None:
    collector = Collector()
    with pytest.raises(ProtocolError) as caught:
        collector.decoder.feed(data)
    assert words in str(caught.value)
    collector.decoder.feed(encode(m.Stop(""), 0))  # swallowed
    assert collector.frames == []


def test_wrong_bytes_are_answered_before_a_whole_header_is_there() -> None:
    with pytest.raises(ProtocolError):
        Collector().decoder.feed(b"X")


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    body = b"\x94\xa4Left\x01\x01" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(ProtocolError, match="recursion"):
        Collector(Limits()).decoder.feed(HEADER.pack(MAGIC, PROTOCOL, 0, len(body), 0) + body)


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(MAGIC, PROTOCOL, 0, 2**32 - 1, 0),  # over the limit
        HEADER.pack(MAGIC, PROTOCOL, 0, 8 << 20, 64 << 20) + b"\x93",  # within it, but only announced
        HEADER.pack(MAGIC, PROTOCOL, 0, 8 << 20, 0) + bytes(SCRATCH_BYTES),  # begun
        HEADER.pack(MAGIC, PROTOCOL, 0, 26, 0)
        + b"\x95\xa7Welcome\x01\x01\x01\x95\xa6Placed\x01\xdd\xff\xff\xff\xff",  # 4 G chains
        HEADER.pack(MAGIC, PROTOCOL, 0, 11, 0) + b"\x92\xa4Stop\xdb\xff\xff\xff\xff",  # a string of 4 GB
    ],
)
def test_what_is_only_announced_takes_no_memory(data: bytes) -> None:
    decoder = Collector(Limits()).decoder
    decoder.writable()
    tracemalloc.start()
    try:
        try:
            decoder.feed(data)
            decoder.writable()
        except ProtocolError:
            pass
        assert tracemalloc.get_traced_memory()[1] < 4 * SCRATCH_BYTES
    finally:
        tracemalloc.stop()


def test_a_stopped_decoder_holds_nothing() -> None:
    decoder = Decoder(Limits(), lambda message, payload_bytes: None, lambda message, delivered: None)
    decoder.feed(HEADER.pack(MAGIC, PROTOCOL, 0, 100, 0) + b"half of a message")
    assert len(decoder._scratch)
    decoder.stop()
    assert not len(decoder._scratch)
    decoder.feed(b"more")
    decoder.writable()
    decoder.written(1)
    assert not len(decoder._scratch)


def test_idle_decoders_take_next_to_no_memory() -> None:
    frame = encode(m.Stop("hello"), 3) + b"abc"
    tracemalloc.start()
    try:
        collectors = [Collector() for _ in range(1000)]
        for collector in collectors:
            read_like_a_socket(collector.decoder, split(frame, [30, 1]))
        for collector in collectors:
            collector.frames.clear()
        assert tracemalloc.get_traced_memory()[0] < 1000 * 4096
    finally:
        tracemalloc.stop()


@settings(max_examples=60, deadline=None)
@given(frames=st.lists(FRAMES, min_size=2, max_size=4), sizes=SIZES)
def test_streams_that_arrive_in_turns_do_not_mix(frames: list[list[tuple[m.Message, bytes]]], sizes: list[int]) -> None:
    collectors = [Collector(Limits()) for _ in frames]
    streams = [
        split(b"".join(encode(message, len(payload)) + payload for message, payload in own), sizes) for own in frames
    ]
    for pieces in zip_longest(*streams, fillvalue=b""):
        for collector, piece in zip(collectors, pieces, strict=True):
            read_like_a_socket(collector.decoder, iter([piece]))
    assert [collector.frames for collector in collectors] == frames


@pytest.mark.parametrize("size", [SCRATCH_BYTES - 30, SCRATCH_BYTES, SCRATCH_BYTES + 1, 5 * SCRATCH_BYTES])
@pytest.mark.parametrize("chunk", [1000, 1 << 30])
def test_messages_larger_than_the_scratch_buffer(size: int, chunk: int) -> None:
    frames = [(m.Stop("a" * size), b""), (m.Stop("next"), b"payload"), (m.Stop("b" * size), b"")]
    stream = b"".join(encode(message, len(payload)) + payload for message, payload in frames)
    collector = Collector(Limits())
    read_like_a_socket(collector.decoder, split(stream, [chunk]))
    assert collector.frames == frames


def test_large_payload_is_read_in_place() -> None:
    place = bytearray(10 * SCRATCH_BYTES)
    decoder = Decoder(Limits(), lambda message, size: [memoryview(place)], lambda message, delivered: None)
    decoder.feed(encode(m.Stop("x"), len(place)))
    target = decoder.writable()
    assert len(target) == len(place)
    target[:3] = b"abc"
    assert place[:3] == b"abc"


@pytest.mark.parametrize("before", [0, 1, 100_000, 199_999])
def test_what_is_discarded_half_way_leaves_its_place_alone(before: int) -> None:
    collector = Collector(Limits())
    read_like_a_socket(collector.decoder, iter([encode(m.Stop("a"), 200_000) + b"1" * before]))
    assert collector.memory is not None
    place = collector.memory
    collector.decoder.discard()
    read_like_a_socket(collector.decoder, split(b"1" * (200_000 - before) + encode(m.Stop("b"), 3) + b"abc", [1 << 20]))
    assert place == b"1" * before + bytes(200_000 - before)
    assert collector.frames == [(m.Stop("a"), None), (m.Stop("b"), b"abc")]


@pytest.mark.parametrize("room", [[9], [11], [5, 6], []])
def test_payload_that_does_not_fit_its_place_is_refused(room: list[int]) -> None:
    places = [memoryview(bytearray(size)) for size in room]
    decoder = Decoder(SMALL, lambda message, size: places, lambda message, delivered: None)
    with pytest.raises(ProtocolError, match=f"Stop carries 10 payload bytes where {sum(room)} are expected"):
        decoder.feed(encode(m.Stop("x"), 10) + b"0123456789")


def test_places_may_hold_items_of_any_type() -> None:
    place = memoryview(bytearray(16)).cast("f")
    empty = memoryview(bytearray(0)).cast("f")
    decoder = Decoder(SMALL, lambda message, size: [empty, place, empty], lambda message, delivered: None)
    decoder.feed(encode(m.Stop("x"), 16) + struct.pack("4f", 1, 2, 3, 4))
    assert place.tolist() == [1, 2, 3, 4]


def test_stop_from_within_a_receiver_ends_the_stream() -> None:
    frames: list[m.Message] = []

    def deliver(message: m.Message, delivered: bool) -> None:
        frames.append(message)
        decoder.stop()

    decoder = Decoder(SMALL, lambda message, size: None, deliver)
    decoder.feed(encode(m.Stop("1"), 0) + encode(m.Stop("2"), 0))
    decoder.feed(encode(m.Stop("3"), 0))
    assert frames == [m.Stop("1")]


def test_what_a_stream_breaks_off_in() -> None:
    head = encode(m.Stop("reason"), 100)
    decoder = Collector().decoder
    decoder.feed(head[:7])
    assert decoder.unfinished() == "a header with 7 of 20 bytes"
    decoder.feed(head[7:23])
    assert decoder.unfinished() == f"a message with 3 of {len(head) - 20} bytes"
    decoder.feed(head[23:] + bytes(40))
    assert decoder.unfinished() == "Stop with 40 of 100 payload bytes"
    decoder.feed(bytes(60))
    assert decoder.unfinished() == ""
