"""What TLS adds to the contract of transports: its handshake has an end of its own, and little is held."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from shoal.config import Tls
from shoal.errors import ConfigurationError, StartupError
from shoal.transport import Connection, connect, listen
from shoal.transport.tcp_connection import HANDOVER_BYTES
from shoal.transport.tls import Channel, accepting, dialling
from shoal.transport.tls_connection import CIPHERTEXT_BYTES

from .certificates import certificate
from .network import LIMITS, NETWORKS, Inbox, Network, Pair, text


@pytest.fixture(params=[name for name, network in NETWORKS.items() if network.encrypted])
def tls(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


def test_both_sides_are_secured_and_no_session_is_resumed() -> None:
    near, far = Channel(dialling(certificate()), "127.0.0.1"), Channel(accepting(certificate()))
    flights = []
    while not (near.secured and far.secured):
        for one, other in ((near, far), (far, near)):
            if not one.secured:
                one.shake_hands()
            flights.append(one.outgoing())
            other.incoming(memoryview(flights[-1]))
    assert far.outgoing() == b"", "a ticket would spare the next handshake its certificates"
    assert near.write(memoryview(b"words")) == 5
    place = memoryview(bytearray(10))
    assert far.read(place) is None
    far.incoming(memoryview(near.outgoing()))
    assert (far.read(place), bytes(place[:5]), far.read(place)) == (5, b"words", None)
    near.finish()
    far.incoming(memoryview(near.outgoing()))
    assert far.read(place) == 0
    far.write(memoryview(b"more"))  # its own half is open still


def test_a_line_that_is_cut_does_not_pass_for_an_orderly_end(tls: Network) -> None:
    async def scenario() -> None:
        far = Inbox()
        listener = await tls.listen(tls.somewhere, far.accept)
        peer = await tls.blocking(listener)
        await far.until(lambda: far.connection is not None)
        await asyncio.sleep(0.05)
        socket.socket(fileno=peer.detach()).close()  # as someone on the way can: TCP's end without TLS's
        assert "closed without TLS's own end" in await far.ended()
        await listener.close()

    tls.run(scenario)


def test_a_listener_that_never_shakes_hands_is_given_up_at_the_deadline(tls: Network) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
            near = Inbox()
            start = asyncio.get_running_loop().time()
            with pytest.raises(StartupError, match=r"nothing answered at .* in 0\.3 s"):
                await tls.connect(address, near, deadline_ms=300)
            assert asyncio.get_running_loop().time() - start < 2
            await asyncio.sleep(0.05)
            accepted, _ = mute.accept()
            with accepted:
                accepted.settimeout(5)
                while accepted.recv(1 << 16):
                    pass  # the ClientHello, and then the end
            assert near.connection is None and near.losses == []

    tls.run(scenario)


def test_a_listener_that_breaks_off_the_handshake_is_tried_again(tls: Network) -> None:
    async def scenario() -> None:
        broken = 0

        def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal broken
            broken += 1
            writer.transport.abort()

        async with await asyncio.start_server(breaks_off, "127.0.0.1", 0) as server:
            address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(StartupError, match="nothing answered at"):
                await tls.connect(address, Inbox(), deadline_ms=300)
        assert broken > 1

    tls.run(scenario)


def closes(connection: Connection) -> None:
    connection.close()


def speaks_and_closes(connection: Connection) -> None:
    connection.send(text(1), [bytes(3_000_000)])
    connection.close()


@pytest.mark.parametrize("act", [closes, speaks_and_closes])
def test_who_closes_before_the_handshake_is_over_still_ends_it_orderly(
    tls: Network, act: Callable[[Connection], None]
) -> None:
    async def scenario() -> None:
        near, far = Inbox(), Inbox()

        def accept(connection: Connection) -> Inbox:
            act(connection)
            return far

        listener = await tls.listen(tls.somewhere, accept)
        await tls.connect(listener.address, near, deadline_ms=5_000)
        assert await near.ended() == ""
        assert near.messages == ([text(1)] if act is speaks_and_closes else [])
        await listener.close()

    tls.run(scenario)


def test_little_is_encrypted_before_the_socket_takes_it(tls: Network) -> None:
    """So that what is urgent overtakes, and a slow peer costs no second copy of the model."""

    async def scenario(pair: Pair) -> None:
        pair.accepted._transport.pause_reading()  # type: ignore[attr-defined]
        for number in range(8):
            pair.connection.send(text(number), [bytes(LIMITS.payload_bytes_max)])
        await asyncio.sleep(0.1)
        transport = pair.connection._transport  # type: ignore[attr-defined]
        assert transport.get_write_buffer_size() <= 3 * HANDOVER_BYTES
        assert pair.connection.queued_bytes > 7 * LIMITS.payload_bytes_max
        pair.accepted._transport.resume_reading()  # type: ignore[attr-defined]
        await pair.far.arrived(8)

    tls.run_pair(scenario)


def test_idle_connections_hold_no_buffer(tls: Network) -> None:
    async def scenario(pair: Pair) -> None:
        pair.connection.send(text(1), [bytes(CIPHERTEXT_BYTES)])
        pair.connection.send(text(2))
        await pair.far.arrived(2)
        await asyncio.sleep(0.01)
        assert len(pair.accepted._decoder._scratch) == 0  # type: ignore[attr-defined]
        assert len(pair.connection._plain) == 0  # type: ignore[attr-defined]

    tls.run_pair(scenario)


def test_files_that_cannot_be_used_are_named(tls: Network) -> None:
    async def scenario() -> None:
        missing = Tls("/nowhere/node.pem", "/nowhere/node.key", "/nowhere/ca.pem")
        with pytest.raises(ConfigurationError, match="--tls-cert /nowhere/node.pem cannot be read"):
            await listen(tls.somewhere, Inbox().accept, LIMITS, tls=missing)
        with pytest.raises(ConfigurationError, match="--tls-cert /nowhere/node.pem cannot be read"):
            await connect("tcp://127.0.0.1:1", Inbox(), LIMITS, 1_000, tls=missing)

    tls.run(scenario)
