"""A faulty connection loses, repeats, delays and reorders whole frames, as its seed decides, and nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from shoal.config import Limits
from shoal.errors import ConfigurationError
from shoal.transport import Connection, connect, listen
from shoal.transport.faulty import Faults, faulty
from shoal.wire import messages as m

COUNT = 300


class Inbox:
    def __init__(self) -> None:
        self.frames: list[tuple[m.Message, bytes]] = []
        self.places: list[memoryview] = []
        self.over = asyncio.Event()

    def admit(self, connection: Connection, message: m.Message, payload_bytes: int) -> Sequence[memoryview]:
        self.places = [memoryview(bytearray(payload_bytes))]
        return self.places

    def received(self, connection: Connection, message: m.Message, delivered: bool) -> None:
        self.frames.append((message, b"".join(self.places)))
        self.places = []

    def lost(self, connection: Connection, reason: str) -> None:
        self.over.set()


def exchange(faults: Faults, seed: int = 1, address: str = "inproc://node", pause_s: float = 0.0) -> list[int]:
    """Sends COUNT frames from one reused buffer; the numbers in order of arrival, each checked whole."""

    async def scenario() -> list[tuple[m.Message, bytes]]:
        near, far = Inbox(), Inbox()
        listener = await listen(address, lambda connection: far, Limits())
        connection = await connect(listener.address, near, Limits(), 5000, faulty(faults, seed))
        buffer = bytearray(8)
        for number in range(COUNT):
            buffer[:] = number.to_bytes(8, "little")
            connection.send(m.Saved(0, number, ""), [buffer])
            await asyncio.sleep(pause_s)  # a frame that is not held back has left when this returns
        connection.close()
        async with asyncio.timeout(10):
            await far.over.wait()
        await listener.close()
        return far.frames

    frames = asyncio.run(scenario())
    numbers = []
    for message, payload in frames:
        assert isinstance(message, m.Saved)
        assert payload == message.seq.to_bytes(8, "little")
        numbers.append(message.seq)
    return numbers


def test_without_faults_nothing_changes() -> None:
    assert exchange(Faults()) == list(range(COUNT))


def test_dropped_frames_never_arrive() -> None:
    numbers = exchange(Faults(drop=0.3))
    assert numbers == sorted(set(numbers))
    assert 0.5 * COUNT < len(numbers) < 0.9 * COUNT
    assert exchange(Faults(drop=1.0)) == []


def test_duplicated_frames_arrive_twice() -> None:
    counts = Counter(exchange(Faults(duplicate=0.3)))
    assert set(counts) == set(range(COUNT))
    assert set(counts.values()) == {1, 2}


@pytest.mark.parametrize("address", ["inproc://node", "tcp://127.0.0.1:0"])
def test_delayed_frames_arrive_once_with_what_the_buffer_held_when_sent(address: str) -> None:
    numbers = exchange(Faults(delay=0.5, delay_ms_max=5), address=address, pause_s=0.0005)
    assert numbers != list(range(COUNT))
    assert sorted(numbers) == list(range(COUNT))


def test_a_reordered_frame_leaves_after_the_next() -> None:
    numbers = exchange(Faults(reorder=0.2, delay_ms_max=10_000))
    assert sorted(numbers) == list(range(COUNT))
    assert 0.1 * COUNT < sum(a > b for a, b in pairwise(numbers)) < 0.3 * COUNT


def test_a_lone_reordered_frame_leaves_all_the_same() -> None:
    async def scenario() -> None:
        far = Inbox()
        listener = await listen("inproc://node", lambda connection: far, Limits())
        wrap = faulty(Faults(reorder=1.0, delay_ms_max=10), 1)
        connection = await connect(listener.address, Inbox(), Limits(), 5000, wrap)
        connection.send(m.Stop("alone"))
        async with asyncio.timeout(10):
            while not far.frames:
                await asyncio.sleep(0.005)
        connection.close()
        await far.over.wait()

    asyncio.run(scenario())


def test_one_seed_gives_one_fate() -> None:
    faults = Faults(drop=0.2, duplicate=0.2, reorder=0.2, delay_ms_max=10_000)
    assert exchange(faults, seed=5) == exchange(faults, seed=5)
    assert exchange(faults, seed=5) != exchange(faults, seed=6)


def test_the_listening_side_may_be_faulty_too_and_greetings_are_spared() -> None:
    async def scenario() -> None:
        near = Inbox()
        far = Inbox()
        faced: list[Connection] = []

        def accept(connection: Connection) -> Inbox:
            faced.append(connection)
            connection.send(m.Accepted("node"))
            connection.send(m.Stop("never arrives"))
            return far

        listener = await listen("inproc://node", accept, Limits(), faulty(Faults(drop=1.0), 1))
        connection = await connect(listener.address, near, Limits(), 5000)
        connection.send(m.Stop("arrives"))
        await asyncio.sleep(0.01)
        assert [message for message, _ in near.frames] == [m.Accepted("node")]
        assert [message for message, _ in far.frames] == [m.Stop("arrives")]
        assert faced[0].received_bytes == connection.sent_bytes > 0
        assert faced[0].sent_bytes == connection.received_bytes > 0
        assert faced[0].address == "inproc://node"
        connection.close()
        await far.over.wait()

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["drop", "duplicate", "delay", "reorder"])
def test_a_probability_is_between_0_and_1(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Faults\.{name}=1\.5 is no probability"):
        Faults(**{name: 1.5})
