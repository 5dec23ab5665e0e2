"""Further streams on a long link: payload is spread over them, and the peer stays one peer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import uvloop

from shoal.config import PROTOCOL, Job, Limits
from shoal.core import machine as k
from shoal.core import session as s
from shoal.errors import JobError
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.node import Node, milliseconds
from shoal.runtime.worker import Worker, WorkerNode
from shoal.transport import Connection, connect
from shoal.transport.faulty import Faults, faulty
from shoal.vocabulary import Contributor, PolicySpec, TableSpec, TensorSpec
from shoal.wire import messages as m
from shoal.wire.framing import encode

from .network import WAIT_S, Inbox

STREAMS = 3
LONG = Limits(
    long_link_us=0, stream_us=1, streams_max=STREAMS, tick_ms=10, connect_ms=5_000
)  # any way over TCP is long
SHORT = Limits(long_link_us=60_000_000, tick_ms=10)
BULK = bytes(1_000_000)
SGD = ("sgd", ((("lr", 0.1),),), PolicySpec("sync"), None, "mean")


@dataclass
class Recorder:
    """A machine that writes down what happens."""

    events: list[object] = field(default_factory=list)

    def step(self, event: object, now: int) -> list[k.Effect]:
        if not isinstance(event, k.Tick):
            self.events.append(event)
        return []


class Listening(Node):
    """A node with a Recorder, which takes all payload and notes by which connection it came."""

    def __init__(self, name: str, limits: Limits) -> None:
        super().__init__(name, Job("streams", "secret", limits=limits))
        self.recorder = Recorder()
        self.ways: Counter[int] = Counter()
        self.said: list[str] = []

    def machine(self) -> Recorder:
        return self.recorder

    def perform(self, effect: k.Effect) -> None:
        raise AssertionError(effect)

    def log(self, text: str) -> None:
        self.said.append(text)

    def admit_payload(self, source: str, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        return [memoryview(bytearray(payload_bytes))]

    def received(self, connection: object, message: m.Message, delivered: bool) -> None:
        self.ways[id(connection)] += isinstance(message, m.Stage)
        super().received(connection, message, delivered)  # type: ignore[arg-type]

    @property
    def clocks(self) -> list[int]:
        events = self.recorder.events
        return [
            e.message.contributor.clock for e in events if isinstance(e, k.Received) and isinstance(e.message, m.Stage)
        ]


def stage(clock: int) -> m.Stage:
    return m.Stage(Contributor(0, 0, clock, 0), (0,))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def between(
    scenario: Callable[[Listening, Listening], Awaitable[None]],
    limits: Limits = LONG,
    address: str = "tcp://127.0.0.1:0",
) -> None:
    """Runs scenario(worker, server): the worker has dialled the server."""

    async def whole() -> None:
        worker, server = Listening("worker/0", limits), Listening("server/0", limits)
        try:
            await worker.dial("server/0", await server.listen(address))
            await scenario(worker, server)
        finally:
            await worker.close()
            await server.close()

    uvloop.run(whole())


def widened(*nodes: Node) -> bool:
    return all(len(peer.streams) == STREAMS for node in nodes for peer in node.peers.values())


def test_payload_is_spread_over_the_streams_and_messages_go_by_the_first() -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        for clock in range(60):
            worker.send("server/0", stage(clock), [BULK])
        first = worker.peers["server/0"].connection
        before = first.sent_bytes
        worker.send("server/0", m.Report(0, 0, {}))
        assert 0 < first.sent_bytes - before < 100
        await until(lambda: len(server.clocks) == 60)
        assert sorted(server.clocks) == list(range(60))
        ways = [count for count in server.ways.values() if count]
        assert len(ways) == STREAMS
        assert min(ways) >= 5
        assert server.ways[id(server.peers["worker/0"].connection)] == 0

    between(scenario)


def test_both_sides_send_by_them() -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        for clock in range(9):
            server.send("worker/0", m.Parameters(0, 0, 0, clock, (clock,)), [BULK])
        await until(lambda: len(worker.recorder.events) == 10)
        assert server.peers["worker/0"].connection.sent_bytes < len(BULK)

    between(scenario)


def test_further_streams_are_no_events() -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        next(iter(worker.peers["server/0"].streams)).close()
        await until(lambda: not widened(worker) and not widened(server))
        assert worker.recorder.events == [k.Regained("server/0")]
        assert server.recorder.events == [k.Regained("worker/0")]
        for clock in range(9):
            worker.send("server/0", stage(clock), [BULK])
        await until(lambda: len(server.clocks) == 9)

    between(scenario)


def test_without_any_stream_left_payload_goes_by_the_first() -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        for stream in list(worker.peers["server/0"].streams):
            stream.close()
        await until(lambda: not worker.peers["server/0"].streams and not server.peers["worker/0"].streams)
        worker.send("server/0", stage(1), [BULK])
        await until(lambda: server.clocks == [1])

    between(scenario)


def test_a_lost_peer_loses_its_streams_and_gets_them_again() -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        old = server.peers["worker/0"]
        old.connection.close()
        await until(lambda: len(worker.recorder.events) == 3 and widened(worker, server))
        assert server.peers["worker/0"] is not old
        assert old.streams == {}
        assert worker.recorder.events == [k.Regained("server/0"), k.Lost("server/0"), k.Regained("server/0")]
        await until(lambda: len(worker._links) == len(server._links) == 1 + STREAMS)  # nothing of the old is left

    between(scenario)


@pytest.mark.parametrize(("limits", "address"), [(SHORT, "tcp://127.0.0.1:0"), (LONG, "inproc://server")])
def test_a_short_way_has_one_stream(limits: Limits, address: str) -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await asyncio.sleep(0.1)
        assert len(worker._links) == len(server._links) == 1
        worker.send("server/0", stage(1), [BULK])
        await until(lambda: server.clocks == [1])

    between(scenario, limits, address)


@pytest.mark.parametrize(
    ("link", "name", "words"),
    [
        (1, "worker/0", "worker/0 has no connection that this stream belongs to"),
        (0, "worker/7", "worker/7 has no connection that this stream belongs to"),
        (None, "worker/0", f"worker/0 has streams_max={STREAMS} streams already"),
    ],
)
def test_a_stream_that_belongs_to_nobody_is_refused(link: int | None, name: str, words: str) -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        stranger = Inbox()
        connection = await connect(worker._dialled["server/0"], stranger, LONG, 5_000)
        number = server.peers["worker/0"].link if link is None else link
        connection.send(m.Hello(PROTOCOL, "streams", "secret", name, number, 9))
        await stranger.ended()
        (refused,) = stranger.messages
        assert isinstance(refused, m.Refused)
        assert words in refused.reason
        assert widened(server)

    between(scenario)


def test_a_stream_that_is_slow_holds_nothing_up() -> None:
    """All take from one queue: what a stalled stream was not given yet, the others send."""

    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        stalled = next(iter(server.peers["worker/0"].streams))
        stalled._transport.pause_reading()  # type: ignore[attr-defined]
        count = 60
        for clock in range(count):
            worker.send("server/0", stage(clock), [BULK])
        streams = worker.peers["server/0"].streams
        await until(lambda: sum(stream.queued_bytes > 0 for stream in streams) <= 1)
        await until(lambda: len(server.clocks) >= count - 10)
        stalled._transport.resume_reading()  # type: ignore[attr-defined]
        await until(lambda: len(server.clocks) == count)

    between(scenario)


def test_what_a_lost_stream_was_not_given_yet_the_others_send() -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: widened(worker, server))
        ends = list(server.peers["worker/0"].streams)
        for end in ends:
            end._transport.pause_reading()  # type: ignore[attr-defined]
        count = 60
        for clock in range(count):
            worker.send("server/0", stage(clock), [BULK])
        await asyncio.sleep(0.05)
        first = next(iter(worker.peers["server/0"].streams))
        waiting = len(first.queue)
        assert waiting > count / 2
        first._transport.abort()  # type: ignore[attr-defined]
        await until(lambda: len(worker.peers["server/0"].streams) == STREAMS - 1)
        assert len(first.queue) == waiting
        for end in ends:
            end._transport.resume_reading()  # type: ignore[attr-defined]
        await until(lambda: len(server.clocks) >= waiting)
        assert server.recorder.events[0] == k.Regained("worker/0") and k.Lost("worker/0") not in server.recorder.events

    between(scenario)


def test_how_many_streams_follows_from_the_round_trip() -> None:
    async def scenario(worker: Listening, server: Listening) -> None:
        await until(lambda: worker.peers["server/0"].streams)
        await asyncio.sleep(0.1)
        assert len(worker.peers["server/0"].streams) == 1

    between(scenario, replace(LONG, stream_us=60_000_000))


@pytest.mark.parametrize("faults", [Faults(), Faults(drop=0.04, duplicate=0.1, delay=0.2, reorder=0.1, delay_ms_max=8)])
def test_a_job_over_streams_gives_the_same_bits(faults: Faults) -> None:
    def trained(limits: Limits) -> list[bytes]:
        job = EmbeddedJob(
            Job("streams", "secret", 2, 2, replace(limits, resend_ms=50, wait_ms=40_000), "tcp"),
            scheme="tcp",
            wrap=faulty(faults, 1),
        )
        try:
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(partial(_train, job, faults), range(2)))
        finally:
            job.close()

    assert len({*trained(LONG), *trained(SHORT)}) == 1


def _train(job: EmbeddedJob, faults: Faults, rank: int) -> bytes:
    worker = Worker(job.job, job.address, rank, wrap=faulty(faults, 2 + rank))
    try:
        spec = TableSpec((TensorSpec("t", (3000,), "float32", 0),), *SGD, block_elements_max=100)
        values = np.zeros(3000, np.float32)
        seeds = worker.declare(spec)
        worker.bind([values.view(np.uint8)])
        if seeds:
            worker.seed()
        worker.start()
        for clock in range(8):
            worker.push(0, np.random.default_rng((rank, clock)).standard_normal(3000, np.float32).view(np.uint8))
            worker.step((0.1,))
        return values.tobytes()
    finally:
        worker.close()


# --- nothing of an older version lands on a newer one -------------------------------------------


class Watched(WorkerNode):
    """A worker of two blocks that waits at clock 0 for version 5, with its memory bound."""

    def __init__(self) -> None:
        super().__init__(Job("streams", "secret", limits=LONG), 0)
        tensors = (TensorSpec("t", (500_000,), "float32", 0),)
        spec = TableSpec(tensors, *SGD, block_elements_max=250_000)
        placed = m.Placed(1, ((0,),), (), ((0, ""),))
        self.session = s.Session(LONG, worker=0, incarnation=0, spec=spec)
        self.session.couriers.placed = placed
        self.session.parked, self.session.parked_at = "step", milliseconds()
        self.session.arrival.blocks = frozenset({0, 1})
        self.session.arrival.expect(4)
        self.session.released = m.Released(0, 0, 0, 1, 5, True)
        self.parameters = [np.zeros(2_000_000, np.uint8)]
        self.seen: list[m.Message] = []

    def take(self, source: str, message: m.Message, delivered: bool) -> None:
        self.seen.append(message)
        super().take(source, message, delivered)


def while_a_block_arrives(
    version: int, scenario: Callable[[Watched, Connection, Callable[[], Awaitable[None]]], Awaitable[None]]
) -> None:
    """Runs scenario(worker, a stream to it, the rest) when half of block 0 at `version` came by another stream."""

    async def whole() -> None:
        server, worker = Listening("server/0", LONG), Watched()
        try:
            await worker.dial("server/0", await server.listen("tcp://127.0.0.1:0"))
            await until(lambda: widened(worker, server))
            slow, quick, *_ = server.peers["worker/0"].streams
            half = bytes([version]) * 500_000
            slow._transport.write(encode(parameters(version, 0), 1_000_000) + half)  # type: ignore[attr-defined]
            await until(lambda: worker.parameters[0][499_999] == version)

            async def rest() -> None:
                slow._transport.write(half)  # type: ignore[attr-defined]
                slow.send(m.Moved(0, 0, 0, 1, 1))
                await until(lambda: m.Moved(0, 0, 0, 1, 1) in worker.seen)

            await scenario(worker, quick, rest)
        finally:
            await worker.close()
            await server.close()

    uvloop.run(whole())


def parameters(version: int, *blocks: int) -> m.Parameters:
    return m.Parameters(0, 0, 0, version, blocks)


def test_the_rest_of_an_older_version_does_not_land_on_the_newer() -> None:
    async def scenario(worker: Watched, quick: Connection, rest: Callable[[], Awaitable[None]]) -> None:
        quick.send(parameters(5, 0), [bytes([5]) * 1_000_000])
        await until(lambda: worker.session.arrival.arrived == {0})
        await rest()
        quick.send(parameters(5, 1), [bytes([5]) * 1_000_000])
        await until(lambda: worker.session.version == 5)
        assert (worker.parameters[0] == 5).all()

    while_a_block_arrives(4, scenario)


@pytest.mark.parametrize(
    "end", [lambda worker: worker.perform(k.Leased(None)), lambda worker: worker.fail(JobError(""))]
)
def test_nothing_lands_when_the_training_thread_has_its_memory_again(end: Callable[[Watched], None]) -> None:
    async def scenario(worker: Watched, quick: Connection, rest: Callable[[], Awaitable[None]]) -> None:
        end(worker)
        worker.parameters[0][:] = 9
        await rest()
        assert (worker.parameters[0] == 9).all()

    while_a_block_arrives(5, scenario)


def test_without_interruption_the_rest_lands() -> None:
    async def scenario(worker: Watched, quick: Connection, rest: Callable[[], Awaitable[None]]) -> None:
        await rest()
        assert (worker.parameters[0][:1_000_000] == 5).all()
        assert worker.session.arrival.arrived == {0}

    while_a_block_arrives(5, scenario)
