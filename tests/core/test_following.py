"""Where a registry says who leads: how long a coordinator acts, and whom a node follows."""

from __future__ import annotations

from shoal.config import Job, Limits
from shoal.core import machine as k
from shoal.core.coordinator import Coordinator
from shoal.core.following import Following
from shoal.wire import messages as m

LIMITS = Limits(tick_ms=50, lease_ms=1_000)


def test_a_coordinator_does_nothing_more_once_its_lease_has_ended_by_its_own_clock() -> None:
    coordinator = Coordinator(Job(limits=LIMITS), epoch=7)
    assert coordinator.step(k.Leads(until=300), 0) == []
    assert coordinator.step(m.StatusRequest(), 299) == []
    assert coordinator.step(k.Received("visitor/1", m.StatusRequest()), 299), "it leads, and answers"
    assert coordinator.step(k.Leads(until=600), 299) == []
    assert coordinator.step(k.Received("visitor/1", m.StatusRequest()), 599)
    (halt,) = coordinator.step(k.Received("visitor/1", m.StatusRequest()), 600)
    assert isinstance(halt, k.Halt) and "epoch 7 leads job" in halt.reason
    assert coordinator.deposed
    assert coordinator.step(k.Leads(until=9_000), 601) == [], "too late: another one may lead"
    assert coordinator.step(k.Received("visitor/1", m.StatusRequest()), 602) == []


def test_a_coordinator_that_is_deposed_tells_nobody_to_stop() -> None:
    coordinator = Coordinator(Job(limits=LIMITS), epoch=7)
    coordinator.step(k.Received("server/0", m.Register(0, "tcp://there:1", pid=5)), 0)
    (halt,) = coordinator.step(k.Deposed("epoch 9 was given out"), 10)
    assert isinstance(halt, k.Halt) and "epoch 9 was given out" in halt.reason


def test_a_node_goes_to_later_epochs_only() -> None:
    following = Following(LIMITS, "tcp://one:1")
    assert not following.told(4, "tcp://one:1"), "it is there"
    assert following.told(9, "tcp://two:1")
    assert not following.told(9, "tcp://two:1")
    assert not following.told(4, "tcp://one:1")
    assert (following.epoch, following.address) == (9, "tcp://two:1")


def test_a_node_seeks_who_leads_when_its_coordinator_is_lost_or_silent() -> None:
    following = Following(LIMITS, "tcp://one:1")
    following.reached(0)
    for now in range(0, 500, 50):
        following.tick(now)
        assert not following.seeks
    following.tick(500)
    assert following.seeks, "half of lease_ms has passed without a word"
    following.heard(520)
    assert not following.seeks
    following.lost()
    assert following.seeks


def test_a_node_that_was_stopped_itself_blames_nobody() -> None:
    following = Following(LIMITS, "tcp://one:1")
    following.reached(0)
    following.tick(50)
    following.tick(5_000)
    assert not following.seeks
