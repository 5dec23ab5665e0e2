"""Silence is counted only while one was there to hear: whoever was stopped itself blames nobody."""

from __future__ import annotations

import pytest

from shoal.config import Job, Limits
from shoal.core import machine as k
from shoal.core import session as s
from shoal.core.coordinator import Coordinator
from shoal.core.session import Session
from shoal.core.shard import Open, Shard
from shoal.core.silence import Silence
from shoal.vocabulary import COORDINATOR
from shoal.wire import messages as m

LIMITS = Limits(tick_ms=50, heartbeat_ms=500, lease_ms=10_000)
ALIVE = k.Received(COORDINATOR, m.Alive(pid=77))


def ticks(machine: Session | Shard | Silence, start: int, stop: int) -> object:
    """Let time pass; what the machine does about it, in the end."""
    last: object = None
    for now in range(start, stop + 1, LIMITS.tick_ms):
        last = machine.too_long_ms(now) if isinstance(machine, Silence) else machine.step(k.Tick(), now)
    return last


def test_it_is_too_long_after_a_lease() -> None:
    silence = Silence(LIMITS)
    assert ticks(silence, 0, 50_000) is None  # nothing is expected yet
    silence.heard(50_000)
    assert ticks(silence, 50_050, 59_950) is None
    assert silence.too_long_ms(60_000) == 10_000


@pytest.mark.parametrize("stopped_ms", [2_500, 9_000, 3_600_000])
def test_a_stop_of_ones_own_does_not_count(stopped_ms: int) -> None:
    silence = Silence(LIMITS)
    silence.heard(0)
    ticks(silence, 0, 9_000)
    woken = 9_000 + stopped_ms
    assert silence.too_long_ms(woken) is None
    assert ticks(silence, woken, woken + 9_950) is None
    assert silence.too_long_ms(woken + 10_000) == 10_000  # it is really silent


def member() -> Session:
    session = Session(LIMITS)
    session.step(s.Begin(3, 1, 1, "tcp://127.0.0.1:4000"), 0)
    session.step(k.Received(COORDINATOR, m.Welcome(3, 0, 1, m.Placed(1, ((0,),), (), ((0, "address"),)))), 0)
    return session


def server() -> Shard:
    shard = Shard(2, LIMITS)
    shard.step(Open("address", 1, coordinator="tcp://127.0.0.1:4000"), 0)
    return shard


@pytest.mark.parametrize("machine", [member(), server()], ids=["worker", "server"])
def test_who_belongs_to_a_silent_coordinator_gives_up_and_names_it(machine: Session | Shard) -> None:
    machine.step(ALIVE, 5_000)
    assert not isinstance(ticks(machine, 5_000, 14_950), str)
    (effect,) = machine.step(k.Tick(), 15_000)
    match effect:
        case k.Failed(kind=kind, text=text):
            assert kind == "JobError" and text.startswith("worker 3, at clock 0, heard nothing")
        case k.Halt(reason=text):
            assert text.startswith("server/2 heard nothing")
        case _:
            pytest.fail(f"{effect}")
    assert "from the coordinator (process 77 at tcp://127.0.0.1:4000) for 10.0 s" in text and "SHOAL_LEASE_MS" in text


def test_a_coordinator_answers_the_heartbeats_of_its_members_only() -> None:
    coordinator = Coordinator(Job(limits=LIMITS), pid=77)
    beat = m.Heartbeat("server/0", 0, 0, 0)
    assert coordinator.step(k.Received("server/0", beat), 0) == []
    coordinator.step(k.Received("server/0", m.Register(0, "address", 1)), 0)
    assert coordinator.step(k.Received("server/0", beat), 10) == [k.Send("server/0", m.Alive(77))]
    coordinator.step(k.Received("worker/0", m.Join(0, 5, 1)), 20)
    beat = m.Heartbeat("worker/0", 0, 0, 0)
    assert coordinator.step(k.Received("worker/0", beat), 30) == [k.Send("worker/0", m.Alive(77))]


def test_a_coordinator_that_was_stopped_blames_nobody() -> None:
    coordinator = Coordinator(Job(limits=LIMITS), pid=77)
    coordinator.step(k.Received("server/0", m.Register(0, "address", 1, host="node7")), 0)
    coordinator.step(k.Tick(), 50)
    assert coordinator.step(k.Tick(), 20_000) == []
    effects = [effect for now in range(20_050, 30_050, 50) for effect in coordinator.step(k.Tick(), now)]
    (halt,) = [effect for effect in effects if isinstance(effect, k.Halt)]
    assert "server 0 (process 1 on node7) died at version 0, before the job began" in halt.reason
