"""The contract of shoal.transport.base, held against every transport."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from shoal.config import Limits
from shoal.errors import ConfigurationError, ProtocolError, StartupError
from shoal.transport import Connection, connect, listen
from shoal.wire import messages as m
from shoal.wire.framing import encode

from .network import LIMITS, Inbox, Network, Pair, text


def in_order(arrived: Sequence[tuple[m.Message, bytes | None]], sent: Sequence[tuple[m.Message, bytes]]) -> bool:
    """Whether all are there, those with payload in order and those without, which may overtake them."""
    return all(
        [frame for frame in arrived if bool(frame[1]) is bulky] == [frame for frame in sent if bool(frame[1]) is bulky]
        for bulky in (True, False)
    )


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
        assert in_order(pair.far.frames, [(text(number), payload) for number, payload in enumerate(payloads)])
        assert in_order(pair.near.frames, [(text(-number), payload) for number, payload in enumerate(payloads)])

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
        sent = [(text(number), b"%d" % number if number % 3 else b"") for number in range(count)]
        assert in_order(pair.far.frames, sent)

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
            await network.connect(address, Inbox(), deadline_ms=200)
        assert 0.19 <= loop.time() - start < 2
        assert f"nothing answered at {address} in 0.2 s" in str(caught.value)
        assert ("refused" if network.name in ("tcp", "shm") else "nothing listens there") in str(caught.value)

    network.run(scenario)


def test_connect_waits_for_a_listener_that_comes_late(network: Network) -> None:
    async def scenario() -> None:
        address = network.nowhere
        near, far = Inbox(), Inbox()
        connecting = asyncio.create_task(network.connect(address, near, deadline_ms=10_000))
        await asyncio.sleep(0.05)
        listener = await network.listen(address, far.accept)
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
            await network.listen(pair.listener.address, pair.far.accept)
        assert pair.listener.address.removeprefix("tcp://") in str(caught.value)

    network.run_pair(scenario)


def test_a_closed_listener_frees_its_address_and_keeps_its_connections(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.listener.close()
        with pytest.raises(StartupError):
            await network.connect(pair.listener.address, Inbox(), deadline_ms=50)
        pair.connection.send(text(1))
        await pair.far.arrived(1)
        again = await network.listen(pair.listener.address, pair.far.accept)
        await again.close()

    network.run_pair(scenario)


def test_many_connections_to_one_listener(network: Network) -> None:
    async def scenario() -> None:
        inboxes: list[Inbox] = []

        def accept(connection: Connection) -> Inbox:
            inboxes.append(Inbox())
            return inboxes[-1].accept(connection)

        listener = await network.listen(network.somewhere, accept)
        near = [Inbox() for _ in range(20)]
        connections = await asyncio.gather(
            *(network.connect(listener.address, inbox, deadline_ms=5000) for inbox in near)
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
