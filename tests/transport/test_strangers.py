"""TCP with a peer that is no Shoal process, or one that dies: one clear end, whatever comes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from random import Random

import pytest

from shoal.config import PROTOCOL
from shoal.transport import Listener
from shoal.transport.tls import dialling
from shoal.wire.framing import HEADER, MAGIC, encode

from .network import WAIT_S, Inbox, Network, text


async def raw(network: Network, listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A peer that may say what it likes; over TLS it has a certificate."""
    host, port = listener.address.removeprefix("tcp://").rsplit(":", 1)
    context = dialling(network.tls) if network.tls else None
    return await asyncio.open_connection(host, int(port), ssl=context)


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
        listener = await tcp.listen(tcp.somewhere, far.accept)
        reader, writer = await raw(tcp, listener)
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


@pytest.mark.parametrize("reset", [False, True])
def test_a_peer_that_ends_in_the_middle_of_a_frame(tcp: Network, reset: bool) -> None:
    async def scenario() -> None:
        far = Inbox(place=lambda message, size: [memoryview(bytearray(size))])
        listener = await tcp.listen(tcp.somewhere, far.accept)
        with await tcp.blocking(listener) as peer:
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
from shoal.config import Tls
from shoal.transport.tls import dialling
port, data, *files = sys.argv[1:]
peer = socket.create_connection(("127.0.0.1", int(port)))
if files:
    peer = dialling(Tls(*files)).wrap_socket(peer, server_hostname="127.0.0.1")
peer.sendall(bytes.fromhex(data))
time.sleep(60)
"""


def test_a_peer_killed_in_the_middle_of_a_frame(tcp: Network) -> None:
    async def scenario() -> None:
        far = Inbox()
        listener = await tcp.listen(tcp.somewhere, far.accept)
        port = listener.address.rsplit(":", 1)[1]
        half = encode(text(1), 0) + encode(text(2), 4_000_000) + bytes(1000)
        files = tcp.tls.environment().values() if tcp.tls else ()
        peer = subprocess.Popen([sys.executable, "-c", SENDER, port, half.hex(), *files])
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
        listener = await tcp.listen(tcp.somewhere, far.accept)
        with await tcp.blocking(listener) as peer:
            peer.sendall(encode(text(1)))
            await far.arrived(1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+ broke off \(.*reset.*\)", await far.ended())
        await listener.close()

    tcp.run(scenario)


@pytest.mark.parametrize("queued_bytes", [0, 50_000_000])
def test_a_peer_that_never_closes_is_cut(tcp: Network, queued_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.transport.framed.LINGER_S", 0.1)

    async def scenario() -> None:
        far = Inbox()
        listener = await tcp.listen(tcp.somewhere, far.accept)
        with await tcp.blocking(listener) as peer:
            await far.until(lambda: far.connection is not None)
            assert far.connection is not None
            far.connection.send(text(1), [bytes(queued_bytes)])
            far.connection.close()
            assert await far.ended() == ""
            await asyncio.sleep(0.5)
            with pytest.raises(OSError, match=r"reset|[Bb]roken pipe|EOF occurred"):  # noqa: PT012, either may be first
                for _ in range(100):
                    peer.sendall(b"still here")
                    await asyncio.sleep(0.001)
        await listener.close()

    tcp.run(scenario)
