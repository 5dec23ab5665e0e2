"""What shared memory adds to the contract of transports: descriptors go along, and only the same user gets in."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
import uvloop

from shoal.config import Limits
from shoal.errors import ConfigurationError, RefusedError
from shoal.transport import ALTERNATIVE, Connection, connect, listen, shm
from shoal.wire import messages as m

LIMITS = Limits()


class Inbox:
    """Takes everything, and keeps the descriptors that came."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.messages: list[m.Message] = []
        self.files: list[int | None] = []
        self.reason: str | None = None

    def accept(self, connection: Connection) -> Inbox:
        self.connection = connection
        return self

    def admit(self, connection: Connection, message: m.Message, payload_bytes: int) -> list[memoryview]:
        return [memoryview(bytearray(payload_bytes))]

    def received(self, connection: Connection, message: m.Message, delivered: bool) -> None:
        self.messages.append(message)
        if isinstance(message, m.Attach):
            self.files.append(connection.take_file())

    def lost(self, connection: Connection, reason: str) -> None:
        self.reason = reason

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.messages) < count:
                await asyncio.sleep(0.001)


def temporary_file(text: bytes) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, text)
    return descriptor


def test_descriptors_arrive_with_their_frames_whatever_is_sent_around_them() -> None:
    async def scenario() -> None:
        near, far = Inbox(), Inbox()
        listener = await listen("shm://", far.accept, LIMITS)
        connection = await connect(listener.address, near, LIMITS, deadline_ms=5000)
        assert connection.shares_memory
        for number in range(20):
            connection.send(m.Registered(number), [bytes(300_000)])
            descriptor = temporary_file(b"%d" % number)
            connection.send(m.Attach(number, 0), files=[descriptor])
            os.close(descriptor)  # the sender may: another one is on its way
            connection.send(m.Registered(number))
        await far.until(60)
        for number, descriptor in enumerate(far.files):
            assert descriptor is not None
            assert os.pread(descriptor, 10, 0) == b"%d" % number
            os.close(descriptor)
        connection.close()
        await listener.close()

    uvloop.run(scenario())


def test_descriptors_that_nothing_asked_for_end_the_connection_and_are_closed() -> None:
    async def scenario() -> None:
        near, far = Inbox(), Inbox()
        listener = await listen("shm://", far.accept, LIMITS)
        connection = await connect(listener.address, near, LIMITS, deadline_ms=5000)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(9):
            connection.send(m.Registered(number), files=[0])
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while far.reason is None or near.reason is None:
                await asyncio.sleep(0.001)
        assert "descriptors that nothing asked for" in far.reason
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before
        await listener.close()

    uvloop.run(scenario())


def test_of_several_addresses_the_first_that_can_be_used_is() -> None:
    async def scenario() -> None:
        far = Inbox()
        tcp, near = await listen("tcp://127.0.0.1:0", far.accept, LIMITS), await listen("shm://", far.accept, LIMITS)
        elsewhere = "shm://another-host.1.0/name"
        for ways, expected in (
            ((near.address, tcp.address), near.address),
            ((elsewhere, tcp.address), tcp.address),
        ):
            connection = await connect(ALTERNATIVE.join(ways), Inbox(), LIMITS, deadline_ms=5000)
            assert connection.address == expected
            connection.close()
        with pytest.raises(ConfigurationError, match="on another host, or belongs to another user"):
            await connect(elsewhere, Inbox(), LIMITS, deadline_ms=5000)
        await tcp.close()
        await near.close()

    uvloop.run(scenario())


def test_another_user_of_the_host_does_not_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        far = Inbox()
        listener = await listen("shm://", far.accept, LIMITS)
        mine = os.getuid()
        monkeypatch.setattr(shm.os, "getuid", lambda: mine + 1)  # the listener's side sees another user's credentials
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as stranger:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stranger, shm._socket_name(listener.address))
            async with asyncio.timeout(10):
                assert await loop.sock_recv(stranger, 100) == b""
        assert far.connection is None and far.messages == []
        await listener.close()

    uvloop.run(scenario())


def test_a_name_that_another_user_took_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        address = f"shm://{shm.here()}/taken-{os.getpid()}"
        mine = os.getuid()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as squatter:
            squatter.bind(shm._socket_name(address))
            squatter.listen()
            monkeypatch.setattr(shm.os, "getuid", lambda: mine + 1)
            near = Inbox()
            with pytest.raises(RefusedError, match=f"in the hands of user {mine}, not of {mine + 1}"):
                await connect(address, near, LIMITS, deadline_ms=5000)
            assert near.messages == [] and near.reason is None
            accepted, _ = squatter.accept()
            with accepted:
                assert accepted.recv(100) == b""

    uvloop.run(scenario())
