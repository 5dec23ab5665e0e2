"""What waits on a connection: urgent frames overtake, order is kept among equals, and memory is bounded."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from shoal.config import Limits
from shoal.transport.queue import Frame, Queue, urgency
from shoal.vocabulary import Contributor
from shoal.wire import messages as m

from .network import NETWORKS, Inbox, Network, Pair, text

BULK = bytes(4_000_000)
HANDED = 3  # frames of this size that a transport may have taken before anything can overtake


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


def stage(clock: int) -> m.Stage:
    return m.Stage(Contributor(0, 0, clock, 0), (9 - clock % 10,))


def parameters(version: int, *blocks: int) -> m.Parameters:
    return m.Parameters(0, 0, 0, version, blocks)


# --- the order in which frames leave ------------------------------------------------------------


def test_a_message_without_payload_overtakes_those_with_it(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        for clock in range(10):
            pair.connection.send(stage(clock), [BULK])
        pair.connection.send(text(1))
        pair.connection.send(text(2), [])
        await pair.far.arrived(12)
        assert max(pair.far.messages.index(text(1)), pair.far.messages.index(text(2))) <= HANDED + 1
        assert pair.far.messages.index(text(1)) < pair.far.messages.index(text(2))

    network.run_pair(scenario)


def test_parameters_of_lower_blocks_leave_first(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        sent = [parameters(8, 0), *(parameters(7, block, block + 1) for block in range(18, -2, -2))]
        for message in sent:
            pair.connection.send(message, [BULK])
        await pair.far.arrived(len(sent))
        late = [message for message in pair.far.messages if message not in sent[:HANDED]]
        assert late == sorted(late, key=lambda each: (each.version, each.blocks))
        assert late[0] == parameters(7, 0, 1)

    network.run_pair(scenario)


def test_gradients_keep_their_order(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        sent = [stage(clock) for clock in range(12)]
        for message in sent:
            pair.connection.send(message, [BULK])
        await pair.far.arrived(len(sent))
        assert pair.far.messages == sent

    network.run_pair(scenario)


def test_all_that_waits_leaves_before_a_close(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        for clock in range(10):
            pair.connection.send(stage(clock), [BULK])
        pair.connection.close()
        assert pair.connection.queued_bytes > len(BULK)
        await pair.far.arrived(10)
        assert await pair.far.ended() == ""
        assert pair.connection.queued_bytes == 0

    network.run_pair(scenario)


def test_what_waits_is_counted_and_held_by_reference(network: Network) -> None:
    async def scenario(pair: Pair) -> None:
        payload = np.zeros(4_000_000, np.uint8)
        alive = weakref.ref(payload)
        for clock in range(10):
            pair.connection.send(stage(clock), [payload.data])
        del payload
        assert alive() is not None
        assert pair.connection.queued_bytes >= (10 - HANDED) * 4_000_000
        await pair.far.arrived(10)
        await asyncio.sleep(0.05)
        gc.collect()
        assert alive() is None
        assert pair.connection.queued_bytes == 0

    network.run_pair(scenario)


def test_urgency_of_every_kind() -> None:
    assert urgency(m.Stop(""), False) < urgency(parameters(1, 5, 2), True) < urgency(parameters(1, 3), True)
    assert urgency(parameters(1, 3), True) < urgency(parameters(2, 0), True)
    assert urgency(stage(1), True) == urgency(stage(2), True)


def test_a_queue_gives_back_what_it_got() -> None:
    queue = Queue()
    frames = [Frame(b"head", (b"x" * number,), 4 + number) for number in range(1, 6)]
    for frame in frames:
        queue.put(stage(1), frame)
    assert (len(queue), queue.held_bytes) == (5, sum(frame.nbytes for frame in frames))
    assert [queue.take() for _ in frames] == frames
    assert (len(queue), queue.held_bytes) == (0, 0)
    queue.put(stage(1), frames[0])
    queue.clear()
    assert (len(queue), queue.held_bytes) == (0, 0)


# --- a peer that takes nothing ------------------------------------------------------------------

TIGHT = Limits(payload_bytes_max=8 << 20, queue_bytes_max=8 << 20, stall_ms=150)


def facing_a_socket(tcp: Network, scenario: Callable[[Inbox, socket.socket], object]) -> None:
    """Runs `scenario(far, peer)`: our end under TIGHT limits, and a plain socket at the other."""

    async def whole() -> None:
        far = Inbox()
        listener = await tcp.listen(tcp.somewhere, far.accept, TIGHT)
        with await tcp.blocking(listener) as peer:
            await far.until(lambda: far.connection is not None)
            await scenario(far, peer)  # type: ignore[misc]
        await listener.close()

    tcp.run(whole)


def take(peer: socket.socket, count: int) -> None:
    while count:
        count -= len(peer.recv(count))


def test_a_peer_that_takes_nothing_is_cut_and_the_memory_let_go(tcp: Network) -> None:
    async def scenario(far: Inbox, peer: socket.socket) -> None:
        assert far.connection is not None
        payload = np.zeros(4_000_000, np.uint8)
        alive = weakref.ref(payload)
        for clock in range(8):
            far.connection.send(stage(clock), [payload.data])
        del payload
        reason = await far.ended()
        assert "took nothing in stall_ms=150" in reason
        assert "queue_bytes_max=8388608" in reason
        assert far.connection.address in reason
        assert far.connection.queued_bytes == 0
        await asyncio.sleep(0.05)
        gc.collect()
        assert alive() is None

    facing_a_socket(tcp, scenario)


def test_a_peer_that_takes_little_but_steadily_is_not_cut(tcp: Network) -> None:
    async def scenario(far: Inbox, peer: socket.socket) -> None:
        assert far.connection is not None
        for clock in range(12):  # more than is taken below, and what the kernel holds of it
            far.connection.send(stage(clock), [BULK])
        for _ in range(20):
            await asyncio.sleep(0.04)
            await asyncio.get_running_loop().run_in_executor(None, take, peer, 1_000_000)
        assert far.losses == []
        assert far.connection.queued_bytes > TIGHT.queue_bytes_max  # it was under watch all the time

    facing_a_socket(tcp, scenario)


def test_a_peer_that_rests_with_little_waiting_is_not_cut(tcp: Network) -> None:
    async def scenario(far: Inbox, peer: socket.socket) -> None:
        assert far.connection is not None
        far.connection.send(stage(1), [BULK])
        await asyncio.sleep(0.4)
        assert far.losses == []

    facing_a_socket(tcp, scenario)


def test_the_usual_limits_let_a_whole_model_wait() -> None:
    assert Limits().queue_bytes_max >= 4 * 1_000_000_000  # a billion float32 parameters
