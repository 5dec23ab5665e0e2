"""The random state that a snapshot asks of a worker is that of its clock, whenever the question comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.core import machine as k
from shoal.core.recollection import Recollection
from shoal.core.saving import Savings
from shoal.core.session import Session
from shoal.vocabulary import COORDINATOR, PolicySpec, TableSpec
from shoal.wire import messages as m
from shoal.wire.forming import NOTHING

SPEC = TableSpec((), "sgd", (), PolicySpec("sync"))


def at(clock: int) -> Callable[[], bytes]:
    return lambda: b"%d" % clock


def session_with(*clocks: int, parked: str = "", keeps: bool = False) -> Session:
    """Of a worker that knows its random state at these clocks."""
    known = Recollection(keeps, {clock: at(clock) for clock in clocks})
    return Session(worker=0, incarnation=0, recollection=known, parked=parked)


def told(effects: list[k.Effect]) -> list[bytes]:
    messages = [effect.message for effect in effects if isinstance(effect, k.Send)]
    return [message.state for message in messages if isinstance(message, m.Recalled)]


def ask(session: Session, clock: int) -> list[bytes]:
    path, used = ("path", (0, 5)) if session.recollection.keeps else ("", NOTHING)
    return told(session.step(k.Received(COORDINATOR, m.Recall(0, 0, 9, clock, path, used)), 0))


@pytest.mark.parametrize(
    ("clocks", "clock", "answer"),
    [((), 6, b""), ((4, 5, 6), 6, b"6"), ((4, 5, 6), 5, b"5"), ((4, 5, 6), 3, b""), ((4, 5, 6), 0, b"6")],
)
def test_it_answers_at_once_where_it_can(clocks: tuple[int, ...], clock: int, answer: bytes) -> None:
    assert ask(session_with(*clocks), clock) == [answer]


def test_it_answers_once_its_thread_has_come_so_far() -> None:
    session = session_with(4, 5)
    assert ask(session, 6) == [] == told(session.step(k.Tick(), 10))
    for clock in range(6, 30):  # it may have gone on long since when the next tick comes
        session.recollection.remember(clock, at(clock))
    assert told(session.step(k.Tick(), 20)) == [b"6"]
    assert told(session.step(k.Tick(), 30)) == [], "once"
    assert ask(session, 6) == [b"6"], "and the same whenever it is asked again"
    session.recollection.remember(30, at(30))
    assert sorted(session.recollection.states) == [28, 29, 30]


def test_its_thread_goes_on_while_what_codecs_had_lost_is_written() -> None:
    session = session_with(5, 6, keeps=True)
    asked = session.step(k.Received(COORDINATOR, m.Recall(0, 0, 9, 6, "path", (0, 5))), 0)
    assert asked == [k.Retain(9, "path", (0, 5))]
    for clock in range(7, 30):
        session.recollection.remember(clock, at(clock))
        assert ask(session, 6) == [] == told(session.step(k.Tick(), clock)), "its file is not there"
    assert session.step(k.Retained(9, "receipt"), 40) == [k.Send(COORDINATOR, m.Recalled(0, 0, 9, b"6", "receipt"))]


def test_who_waits_for_samples_has_drawn_nothing_since() -> None:
    assert ask(session_with(4, 5, parked="lease"), 7) == [b"5"]


def test_the_manifest_waits_for_states_and_not_for_who_is_gone() -> None:
    savings = Savings(shards=1)
    request, commit = m.SnapshotRequest(0, 0, 1, "path", keep=3), m.Commit(1, 9, "cut")
    begun = savings.begin(request, commit, 5, (None, ()), [(0, 0), (1, 1), (2, 2)], 6, {1: (1, 5)}, now=100)
    recalls = [effect.message for effect in begun if isinstance(effect, k.Send)]
    assert recalls == [
        m.Recall(worker, worker, 9, 6, "path", (1, 5) if worker == 1 else NOTHING) for worker in range(3)
    ]
    assert savings.recalled(m.Recalled(1, 1, 9, b"one"), SPEC) == []
    assert savings.saved(m.Saved(0, 9, "file"), 0, SPEC) == []
    assert savings.recalled(m.Recalled(1, 1, 9, b"another"), SPEC) == [], "the first answer counts"
    assert len(savings.resend(700, resend_ms=500)) == 2 and savings.resend(701, resend_ms=500) == []
    assert savings.recalled(m.Recalled(0, 0, 9, b""), SPEC) == []
    (manifest,) = savings.gone(2, SPEC)
    assert isinstance(manifest, k.Manifest)
    assert (manifest.keep, manifest.random) == (3, ((1, b"one"),))
