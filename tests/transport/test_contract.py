"""The contract of shoal.transport.base, held against every transport."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest
import uvloop

from shoal.config import PROTOCOL, Limits
from shoal.errors import ConfigurationError, ProtocolError, StartupError
from shoal.transport import Connection, Listener, connect, listen
from shoal.wire import messages as m
from shoal.wire.framing import HEADER, MAGIC, encode

LIMITS = Limits(message_bytes_max=1 << 20, payload_bytes_max=8 << 20)
WAIT_S = 20


@dataclass
class Inbox:
    """A receiver that writes down what happens to it and can be waited for."""

    place: Callable[[m.Message, int], Sequence[memoryview] | None] | None = None
    react: Callable[[Connection, m.Message], None] = lambda connection, message: None
    connection: Connection | None = None
    frames: list[tuple[m.Message, bytes | None]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    memory: list[memoryview] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def accept(self, connection: Connection) -> Inbox:
        self.connection = connection
        self.changed.set()
        return self

    def admit(self, connection: Connection, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        assert not self.losses
        assert payload_bytes > 0
        places = [memoryview(bytearray(payload_bytes))] if self.place is None else self.place(message, payload_bytes)
        self.memory = list(places or ())
        self.changed.set()
        return places

    def received(self, connection: Connection, message: m.Message, delivered: bool) -> None:
        assert not self.losses
        self.connection = connection
        self.frames.append((message, b"".join(self.memory) if delivered else None))
        self.memory = []
        self.react(connection, message)
        self.changed.set()

    def lost(self, connection: Connection, reason: str) -> None:
        self.losses.append(reason)
        self.changed.set()

    @property
    def messages(self) -> list[m.Message]:
        return [message for message, _ in self.frames]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def arrived(self, count: int) -> None:
        await self.until(lambda: len(self.frames) >= count)

    async def ended(self) -> str:
        """The reason of the one loss."""
        await self.until(lambda: self.losses)
        await asyncio.sleep(0.01)
        assert len(self.losses) == 1
        return self.losses[0]


@dataclass
class Pair:
    """A listener with one connection to it, seen from both ends."""

    listener: Listener
    near: Inbox  # the end that connected
    far: Inbox  # the end that accepted
    connection: Connection

    @property
    def accepted(self) -> Connection:
        assert self.far.connection is not None
        return self.far.connection


@dataclass
class Network:
    """One transport on one event loop."""

    name: str
    run_loop: Callable[[Awaitable[None]], None]

    @property
    def somewhere(self) -> str:
        return "inproc://node" if self.name == "inproc" else "tcp://127.0.0.1:0"

    @property
    def nowhere(self) -> str:
        if self.name == "inproc":
            return "inproc://nobody"
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{unused.getsockname()[1]}"

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Runs it, and fails on errors that only the event loop has seen."""
        seen: list[dict[str, object]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
            await scenario()

        self.run_loop(watched())
        assert seen == []

    def run_pair(self, scenario: Callable[[Pair], Awaitable[None]], far_limits: Limits = LIMITS) -> None:
        async def paired() -> None:
            near, far = Inbox(), Inbox()
            listener = await listen(self.somewhere, far.accept, far_limits)
            connection = await connect(listener.address, near, LIMITS, deadline_ms=5000)
            await far.until(lambda: far.connection is not None)
            await scenario(Pair(listener, near, far, connection))
            connection.close()
            await far.ended()
            await near.ended()
            await listener.close()

        self.run(paired)


NETWORKS = {
    "inproc": Network("inproc", asyncio.run),
    "tcp": Network("tcp", uvloop.run),
    "tcp on asyncio": Network("tcp", asyncio.run),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.fixture(params=[name for name in NETWORKS if name.startswith("tcp")])
def tcp(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


def text(number: int) -> m.Stop:
    return m.Stop(str(number))


# --- frames -----------------------------------------------------------------------------------


def test_frames_arrive_whole_in_order_and_both_ways(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        random = Random(1)
        sizes = [0, 1, 70_000, 65_536, 65_535, 0, 3_000_000, 17, 200_000]
        payloads = [random.randbytes(size) for size in sizes]
        for number, payload in enumerate(payloads):
            pair.connection.send(text(number), [payload])
            pair.accepted.send(text(-number), [payload])
        await pair.far.arrived(len(sizes))
        await pair.near.arrived(len(sizes))
        assert pair.far.frames == [(text(number), payload) for number, payload in enumerate(payloads)]
        assert pair.near.frames == [(text(-number), payload) for number, payload in enumerate(payloads)]

    network.run_pair(scenario)


def test_payload_is_gathered_from_and_scattered_to_many_places(network: Network) -> None:
    sent = [Random(size).randbytes(size) for size in (3, 0, 100_000, 1, 65_536, 9, 300_000, 20)]
    whole = b"".join(sent)
    lengths = [1, 200_000, 0, 5, 65_536, 7]
    lengths.append(len(whole) - sum(lengths))

    async def scenario(pair: Pair) -> None:
        pair.far.place = lambda message, size: [memoryview(bytearray(length)) for length in lengths]
        pair.connection.send(text(1), sent)
        pair.connection.send(text(2), [bytearray(part) for part in sent])
        pair.connection.send(text(3), [memoryview(whole[:4000]).cast("f"), memoryview(whole)[4000:]])
        await pair.far.arrived(3)
        assert pair.far.frames == [(text(number), whole) for number in (1, 2, 3)]

    network.run_pair(scenario)


def test_a_frame_without_payload_asks_for_no_place(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.connection.send(text(1))
        pair.connection.send(text(2), [])
        pair.connection.send(text(3), [b"", memoryview(b"")])
        await pair.far.arrived(3)  # Inbox.admit asserts that it is not asked
        assert pair.far.frames == [(text(number), b"") for number in (1, 2, 3)]

    network.run_pair(scenario)


def test_discarded_payload_leaves_the_stream_in_step(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.far.place = lambda message, size: None if message != text(3) else [memoryview(bytearray(size))]
        pair.connection.send(text(1), [bytes(1_000_000)])
        pair.connection.send(text(2), [bytes(10)])
        pair.connection.send(text(3), [b"kept"])
        await pair.far.arrived(3)
        assert pair.far.frames == [(text(1), None), (text(2), None), (text(3), b"kept")]

    network.run_pair(scenario)


def test_a_payload_of_the_largest_size(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        payload = Random(2).randbytes(LIMITS.payload_bytes_max)
        place = bytearray(len(payload))
        pair.far.place = lambda message, size: [memoryview(place)]
        pair.connection.send(text(1), [payload])
        await pair.far.arrived(1)
        assert place == payload

    network.run_pair(scenario)


def test_many_small_frames(network: Network) -> None:
    count = 20_000

    async def scenario(pair: Pair) -> None:
        for number in range(count):
            pair.connection.send(text(number), [b"%d" % number] if number % 3 else ())
        await pair.far.arrived(count)
        assert pair.far.frames == [(text(number), b"%d" % number if number % 3 else b"") for number in range(count)]

    network.run_pair(scenario)


def test_a_receiver_may_answer_from_within(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.far.react = lambda connection, message: connection.send(m.Stop(f"re: {message.reason}"), [b"x" * 100_000])
        pair.connection.send(text(1))
        pair.connection.send(text(2))
        await pair.near.arrived(2)
        assert pair.near.messages == [m.Stop("re: 1"), m.Stop("re: 2")]

    network.run_pair(scenario)


def test_bytes_are_counted_alike_at_both_ends(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        frames = [(text(1), b""), (text(2), bytes(300_000)), (m.Stop("long" * 10_000), b"x")]
        for message, payload in frames:
            pair.connection.send(message, [payload])
        await pair.far.arrived(3)
        total = sum(len(encode(message, len(payload))) + len(payload) for message, payload in frames)
        assert pair.connection.sent_bytes == total
        assert pair.accepted.received_bytes == total
        assert pair.connection.received_bytes == pair.accepted.sent_bytes == 0

    network.run_pair(scenario)


# --- the end of a connection ------------------------------------------------------------------


@pytest.mark.parametrize("who", ["near", "far"])
def test_a_closed_connection_is_lost_once_on_both_sides(network: Network, who: str) -> None:
    async def scenario(pair: Pair) -> None:
        closing, other = (pair.connection, pair.accepted) if who == "near" else (pair.accepted, pair.connection)
        closing.close()
        assert pair.near.losses == pair.far.losses == []  # no receiver is called from within close
        closing.close()
        assert await pair.near.ended() == ""
        assert await pair.far.ended() == ""
        other.close()
        assert pair.near.losses == pair.far.losses == [""]

    network.run_pair(scenario)


def test_what_was_sent_before_close_arrives(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        payload = Random(3).randbytes(5_000_000)
        pair.accepted.send(m.Stop("crossing"), [payload])
        pair.connection.send(text(1), [payload])
        pair.connection.send(text(2))
        pair.connection.close()
        await pair.far.arrived(2)
        assert pair.far.frames == [(text(1), payload), (text(2), b"")]
        assert await pair.far.ended() == ""
        assert pair.near.frames == []

    network.run_pair(scenario)


def test_send_after_the_end_does_nothing(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.connection.close()
        pair.connection.send(text(1), [b"late"])
        await pair.far.ended()
        pair.accepted.send(text(2), [b"later"])
        await pair.near.ended()
        await asyncio.sleep(0.01)
        assert pair.near.frames == pair.far.frames == []
        assert pair.connection.sent_bytes == pair.accepted.sent_bytes == 0

    network.run_pair(scenario)


def test_a_receiver_may_close_from_within(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.far.react = lambda connection, message: connection.close()
        pair.connection.send(text(1))
        pair.connection.send(text(2), [b"never"])
        assert await pair.far.ended() == ""
        assert await pair.near.ended() == ""
        assert pair.far.messages == [text(1)]

    network.run_pair(scenario)


def test_a_refusal_closes_with_its_reason_and_tells_the_peer(network: Network) -> None:
    def refuse(message: m.Message, size: int) -> None:
        raise ProtocolError("block 7 is not of this shard")

    async def scenario(pair: Pair) -> None:
        pair.far.place = refuse
        pair.connection.send(text(1), [bytes(4_000_000)])
        pair.connection.send(text(2))
        assert await pair.far.ended() == "block 7 is not of this shard"
        assert await pair.near.ended() == ""
        assert pair.far.frames == []
        assert pair.near.messages == [m.Refused("", "block 7 is not of this shard")]

    network.run_pair(scenario)


def test_a_place_of_the_wrong_size_is_refused(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.far.place = lambda message, size: [memoryview(bytearray(size + 1))]
        pair.connection.send(text(1), [b"four"])
        assert await pair.far.ended() == "Stop carries 4 payload bytes where 5 are expected"

    network.run_pair(scenario)


def test_a_frame_over_the_limit_is_refused_before_anyone_is_asked(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.connection.send(text(1), [bytes(3000)])
        assert "payload of 3000 bytes, the limit is payload_bytes_max=1000" in await pair.far.ended()
        await pair.near.arrived(1)
        assert "SHOAL_PAYLOAD_BYTES_MAX" in pair.near.messages[0].reason
        assert pair.far.frames == []

    network.run_pair(scenario, far_limits=Limits(payload_bytes_max=1000))


def test_an_error_of_the_receiver_itself_ends_the_connection_and_is_shown(network: Network) -> None:
    shown: list[object] = []

    def fail(connection: Connection, message: m.Message) -> None:
        raise ZeroDivisionError("a bug")

    async def scenario(pair: Pair) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: shown.append(context["exception"]))
        pair.far.react = fail
        pair.connection.send(text(1))
        pair.connection.send(text(2))
        assert "a bug" in await pair.far.ended()
        await pair.near.ended()
        assert pair.far.messages == [text(1)]

    network.run_pair(scenario)
    assert [type(error) for error in shown] == [ZeroDivisionError]


# --- listening and connecting -----------------------------------------------------------------


def test_connecting_to_nothing_ends_at_the_deadline(network: Network) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        address = network.nowhere
        with pytest.raises(StartupError) as caught:
            await connect(address, Inbox(), LIMITS, deadline_ms=200)
        assert 0.19 <= loop.time() - start < 2
        assert f"nothing answered at {address} in 0.2 s" in str(caught.value)
        assert ("refused" if network.name == "tcp" else "nothing listens there") in str(caught.value)

    network.run(scenario)


def test_connect_waits_for_a_listener_that_comes_late(network: Network) -> None:
    async def scenario() -> None:
        address = network.nowhere
        near, far = Inbox(), Inbox()
        connecting = asyncio.create_task(connect(address, near, LIMITS, deadline_ms=10_000))
        await asyncio.sleep(0.05)
        listener = await listen(address, far.accept, LIMITS)
        assert listener.address == address
        connection = await connecting
        assert connection.address == address
        connection.close()
        await near.ended()
        await far.ended()
        await listener.close()

    network.run(scenario)


def test_a_taken_address_is_named(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        with pytest.raises(ConfigurationError, match="is taken") as caught:
            await listen(pair.listener.address, pair.far.accept, LIMITS)
        assert pair.listener.address.removeprefix("tcp://") in str(caught.value)

    network.run_pair(scenario)


def test_a_closed_listener_frees_its_address_and_keeps_its_connections(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.listener.close()
        with pytest.raises(StartupError):
            await connect(pair.listener.address, Inbox(), LIMITS, deadline_ms=50)
        pair.connection.send(text(1))
        await pair.far.arrived(1)
        again = await listen(pair.listener.address, pair.far.accept, LIMITS)
        await again.close()

    network.run_pair(scenario)


def test_many_connections_to_one_listener(network: Network) -> None:
    async def scenario() -> None:
        inboxes: list[Inbox] = []

        def accept(connection: Connection) -> Inbox:
            inboxes.append(Inbox())
            return inboxes[-1].accept(connection)

        listener = await listen(network.somewhere, accept, LIMITS)
        near = [Inbox() for _ in range(20)]
        connections = await asyncio.gather(
            *(connect(listener.address, inbox, LIMITS, deadline_ms=5000) for inbox in near)
        )
        for number, connection in enumerate(connections):
            connection.send(text(number), [b"%d" % number])
            connection.close()
        for inbox in near:
            await inbox.ended()
        for inbox in list(inboxes):
            assert await inbox.ended() == ""
        assert sorted(inbox.frames[0][1] for inbox in inboxes) == sorted(b"%d" % number for number in range(20))
        await listener.close()

    network.run(scenario)


@pytest.mark.parametrize("address", ["udp://127.0.0.1:1", "127.0.0.1:5555", "tcp://127.0.0.1", "tcp://h:x", "tcp://:5"])
def test_what_is_no_address_is_said_so_at_once(address: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigurationError, match="is no address"):
            await connect(address, Inbox(), LIMITS, deadline_ms=60_000)
        with pytest.raises(ConfigurationError, match="is no address"):
            await listen(address, Inbox().accept, LIMITS)

    asyncio.run(scenario())


def test_an_address_of_another_machine_cannot_be_listened_at() -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1:0"):
            await listen("tcp://192.0.2.1:0", Inbox().accept, LIMITS)

    asyncio.run(scenario())


# --- TCP with a peer that is no Shoal process -------------------------------------------------


async def raw(listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = listener.address.removeprefix("tcp://").rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not b'SHOL'"),
        (Random(4).randbytes(1_000_000), "not b'SHOL'"),
        (HEADER.pack(MAGIC, PROTOCOL + 1, 0, 5, 0), "install the same shoal version on both"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 5, 0) + b"12345", "cannot be decoded"),
    ],
)
def test_strange_bytes_are_answered_by_one_error(tcp: Network, data: bytes, words: str) -> None:
    async def scenario() -> None:
        far = Inbox()
        listener = await listen(tcp.somewhere, far.accept, LIMITS)
        reader, writer = await raw(listener)
        writer.write(data)
        async with asyncio.timeout(WAIT_S):
            answer = await reader.read()
        assert words in await far.ended()
        assert words.encode() in answer
        assert answer.startswith(MAGIC)
        assert far.frames == []
        writer.close()
        await listener.close()

    tcp.run(scenario)


def blocking(listener: Listener) -> socket.socket:
    host, port = listener.address.removeprefix("tcp://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


@pytest.mark.parametrize("reset", [False, True])
def test_a_peer_that_ends_in_the_middle_of_a_frame(tcp: Network, reset: bool) -> None:
    async def scenario() -> None:
        far = Inbox(place=lambda message, size: [memoryview(bytearray(size))])
        listener = await listen(tcp.somewhere, far.accept, LIMITS)
        with blocking(listener) as peer:
            peer.sendall(encode(text(1), 500_000) + bytes(50_000))
            await far.until(lambda: far.memory)
            await asyncio.sleep(0.02)
            if reset:  # what the kernel does for a killed peer that had bytes unread
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert "broke off in the middle of Stop with 50000 of 500000 payload bytes" in await far.ended()
        assert far.frames == []
        await listener.close()

    tcp.run(scenario)


SENDER = """
import socket, sys, time
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
peer.sendall(bytes.fromhex(sys.argv[2]))
time.sleep(60)
"""


def test_a_peer_killed_in_the_middle_of_a_frame(tcp: Network) -> None:
    async def scenario() -> None:
        far = Inbox()
        listener = await listen(tcp.somewhere, far.accept, LIMITS)
        port = listener.address.rsplit(":", 1)[1]
        half = encode(text(1), 0) + encode(text(2), 4_000_000) + bytes(1000)
        peer = subprocess.Popen([sys.executable, "-c", SENDER, port, half.hex()])
        try:
            await far.arrived(1)
            await far.until(lambda: far.memory)
            os.kill(peer.pid, signal.SIGKILL)
            assert "in the middle of Stop with 1000 of 4000000 payload bytes" in await far.ended()
            assert far.messages == [text(1)]
        finally:
            peer.kill()
            peer.wait()
        await listener.close()

    tcp.run(scenario)


def test_a_reset_between_frames_says_so(tcp: Network) -> None:
    async def scenario() -> None:
        far = Inbox()
        listener = await listen(tcp.somewhere, far.accept, LIMITS)
        with blocking(listener) as peer:
            peer.sendall(encode(text(1)))
            await far.arrived(1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+ broke off \(.*reset.*\)", await far.ended())
        await listener.close()

    tcp.run(scenario)


@pytest.mark.parametrize("queued_bytes", [0, 50_000_000])
def test_a_peer_that_never_closes_is_cut(tcp: Network, queued_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.transport.tcp.LINGER_S", 0.1)

    async def scenario() -> None:
        far = Inbox()
        listener = await listen(tcp.somewhere, far.accept, LIMITS)
        with blocking(listener) as peer:
            await far.until(lambda: far.connection is not None)
            assert far.connection is not None
            far.connection.send(text(1), [bytes(queued_bytes)])
            far.connection.close()
            assert await far.ended() == ""
            await asyncio.sleep(0.5)
            with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):  # noqa: PT012, either may be the one to see it
                for _ in range(100):
                    peer.sendall(b"still here")
                    await asyncio.sleep(0.001)
        await listener.close()

    tcp.run(scenario)
