"""A benchmark's processes obey, are missed when they die, and never outlive it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.errors import DeadlineError, JobError

FOLLOWER = """
import msgspec, os, sys, time
from shoal.bench.control import Follower

class Order(msgspec.Struct):
    number: int

class Answer(msgspec.Struct):
    number: int

follower = Follower(sys.argv[1], sys.argv[2], Order)
for order in follower:
    if order.number < 0:
        sys.exit("no negative numbers, please")
    time.sleep(order.number // 1000)
    follower.answer(Answer(order.number * 2))
print("over")
time.sleep(60)
"""


class Number(msgspec.Struct, frozen=True):
    number: int


@pytest.fixture
def place(tmp_path: Path) -> tuple[str, Path]:
    script = tmp_path / "follower.py"
    script.write_text(FOLLOWER)
    return str(script), tmp_path / "control"


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_orders_are_answered_and_the_end_ends_everyone(place: tuple[str, Path]) -> None:
    script, control = place
    with Fleet("t", 1, 1) as fleet, Conductor(control, fleet.check, fleet.why) as conductor:
        for name in ("a", "b"):
            fleet.start(name, (script, str(control), name))
        conductor.gather(["a", "b"], 30)
        pids = [child.pid for child in fleet._running.values()]
        answers = conductor.ask({"a": Number(1), "b": Number(2)}, Number, 30, "a sum")
        assert answers == {"a": Number(2), "b": Number(4)}
        assert all(running(pid) for pid in pids)
    assert not any(running(pid) for pid in pids)


def test_a_dead_process_is_missed_at_once_with_its_last_words(place: tuple[str, Path]) -> None:
    script, control = place
    start = time.monotonic()
    with Fleet("t", 1, 1) as fleet, Conductor(control, fleet.check, fleet.why) as conductor:
        for name in ("a", "b"):
            fleet.start(name, (script, str(control), name))
        conductor.gather(["a", "b"], 30)
        pids = [child.pid for child in fleet._running.values()]
        with pytest.raises(JobError, match="b ended during a sum, its last lines: no negative numbers"):
            conductor.ask({"a": Number(100_000), "b": Number(-1)}, Number, 60, "a sum")
    assert time.monotonic() - start < 30
    assert not any(running(pid) for pid in pids)


def test_a_process_that_dies_at_the_start_is_named(place: tuple[str, Path]) -> None:
    _, control = place
    with Fleet("t", 1, 1) as fleet, Conductor(control, fleet.check, fleet.why) as conductor:
        fleet.start("a", ("-c", "import sys; sys.exit('cannot begin')"))
        with pytest.raises(JobError, match="a .pid .* ended, its last lines: cannot begin"):
            conductor.gather(["a"], 30)


def test_a_late_process_is_named(place: tuple[str, Path]) -> None:
    script, control = place
    with Fleet("t", 1, 1) as fleet, Conductor(control, fleet.check, fleet.why) as conductor:
        fleet.start("a", (script, str(control), "a"))
        conductor.gather(["a"], 30)
        with pytest.raises(DeadlineError, match="a did not finish a long sum within"):
            conductor.ask({"a": Number(60_000)}, Number, 0.2, "a long sum")
        with pytest.raises(DeadlineError, match="not there after 0.1 s: z"):
            conductor.gather(["a", "z"], 0.1)


def test_a_paused_process_answers_once_it_goes_on_and_ends_all_the_same(place: tuple[str, Path]) -> None:
    script, control = place
    with Fleet("t", 1, 1) as fleet, Conductor(control, fleet.check, fleet.why) as conductor:
        fleet.start("a", (script, str(control), "a"))
        conductor.gather(["a"], 30)
        fleet.pause(["a"])
        with pytest.raises(DeadlineError, match="a did not finish a sum"):
            conductor.ask({"a": Number(1)}, Number, 0.3, "a sum")
        fleet.resume(["a"])
        assert conductor.ask({}, Number, 1, "nothing") == {}
        fleet.pause(["a"])
        pid = fleet.pid("a")
        start = time.monotonic()
        fleet.end(["a"])
        assert time.monotonic() - start < 2
        assert not running(pid)


def test_a_prefix_becomes_the_command_behind_it(place: tuple[str, Path]) -> None:
    script, control = place
    with Fleet("t", 1, 1) as fleet, Conductor(control, fleet.check, fleet.why) as conductor:
        fleet.start("a", (script, str(control), "a"), ("/usr/bin/env", "SEEN=yes"))
        conductor.gather(["a"], 30)
        environment = Path(f"/proc/{fleet.pid('a')}/environ").read_bytes().split(b"\0")
        assert b"SEEN=yes" in environment
        assert b"SHOAL_JOB=t" in environment
