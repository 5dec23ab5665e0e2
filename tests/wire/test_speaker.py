"""Every message has one node that may say it, or none in particular; another's word is not taken for it."""

from __future__ import annotations

import typing

import msgspec
import pytest

from shoal.vocabulary import COORDINATOR, Contributor, Weighted, server_name, worker_name
from shoal.wire import messages as m
from shoal.wire.speaker import ANYONE, speaker

MESSAGE_TYPES = typing.get_args(m.Any)
WHO = Contributor(5, 1, 2, 0)
SERVERS_SAY = {
    m.Register, m.Created, m.Attached, m.Staged, m.Complete, m.Norms, m.Applied, m.Parameters, m.Moved, m.Saved,
    m.Recovered, m.Forward, m.Share, m.Held, m.Fill, m.Filled, m.Whole,
}  # fmt: skip
COORDINATOR_SAYS = {
    m.Registered, m.Welcome, m.Create, m.Declared, m.Await, m.Foresee, m.Commit, m.Factors, m.Released, m.Waiting,
    m.Granted, m.SnapshotDone, m.Left, m.Fenced, m.Stop, m.Alive, m.Status, m.Recover, m.Introduce, m.Resumed,
    m.Placed, m.Prepare,
}  # fmt: skip


def example(kind: type[m.Message]) -> m.Message:
    """A message of this kind that server 7, or worker 5, would send: its other numbers are 3."""
    given: dict[type, object] = {int: 3, str: "", float: 0.0, bool: False, Contributor: WHO}
    given[m.Ready] = m.Ready(WHO, 1, (), ())
    values: dict[str, object] = {}
    for item in msgspec.structs.fields(kind):
        if item.required:
            values[item.name] = given.get(item.type, ())
    values |= {name: number for name, number in (("server", 7), ("worker", 5), ("rank", 5)) if name in values}
    return kind(**values)


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_every_message_has_a_speaker(kind: type[m.Message]) -> None:
    assert speaker(example(kind)) in (ANYONE, COORDINATOR, server_name(7), worker_name(5))


@pytest.mark.parametrize("kind", sorted(SERVERS_SAY, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_what_a_server_says_names_the_server(kind: type[m.Message]) -> None:
    message = example(kind)
    assert speaker(message) == server_name(7)
    assert speaker(msgspec.structs.replace(message, server=8)) == server_name(8)


@pytest.mark.parametrize(
    "kind", sorted(COORDINATOR_SAYS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_only_the_coordinator_decides(kind: type[m.Message]) -> None:
    assert speaker(example(kind)) == COORDINATOR


def test_nobody_but_the_coordinator_places_replicas_or_has_an_update_prepared() -> None:
    placed = m.Placed(1, ((0, 1),), (), ((0, "a"), (1, "b")))
    prepare = m.Prepare(1, 1, (Weighted(WHO, 1.0),), (1,), (0, 1))
    assert speaker(placed) == speaker(prepare) == COORDINATOR


def test_a_server_gives_and_forwards_in_its_own_name_only() -> None:
    assert speaker(m.Forward(2, 1, 1, (Weighted(WHO, 1.0),), 1, (0,))) == server_name(2)
    assert speaker(m.Fill(2, 5, 5, (0,))) == server_name(2)
    assert speaker(m.Recovered(2, 1, 0, 0, None, (), (), (), (), (), ())) == server_name(2)
