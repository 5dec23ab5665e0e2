"""Lender and borrower without sockets: who gets which place, and that everything has one end."""

from __future__ import annotations

from signal import SIGCONT, SIGKILL, SIGTERM

import pytest

from shoal.config import Limits
from shoal.core import lending as e
from shoal.core import machine as k
from shoal.core.borrower import Borrower
from shoal.core.lender import GRACE_MS, Lender
from shoal.wire import fleet as f
from shoal.wire import messages as m

LIMITS = Limits()
ONE, TWO = "launcher/one-1-x", "launcher/two-2-y"


def lender(places: int = 2, places_per_job: int = 2) -> Lender:
    machine = Lender(places, places_per_job, LIMITS, pid=1)
    for peer in (ONE, TWO):
        machine.step(k.Regained(peer), 0)
    return machine


def lend(machine: Lender, launcher: str, number: int, job: str = "", **environment: str) -> list[k.Effect]:
    """What comes of asking; a process that is started gets the pid 100 + its ticket."""
    request = f.Lend(number, job or launcher[9:12], f"server {number}", environment)
    effects = machine.step(k.Received(launcher, request), 0)
    for spawn in [effect for effect in effects if isinstance(effect, e.Spawn)]:
        effects += machine.step(e.Spawned(spawn.ticket, 100 + spawn.ticket), 0)
    return [effect for effect in effects if not isinstance(effect, k.Log)]


def answers(effects: list[k.Effect]) -> list[m.Message]:
    return [effect.message for effect in effects if isinstance(effect, k.Send)]


def declined(effects: list[k.Effect]) -> str:
    (answer,) = answers(effects)
    assert isinstance(answer, f.Declined)
    return answer.reason


def test_places_are_limited_in_all_and_for_one_job_and_free_again_only_when_their_process_has_ended() -> None:
    machine = lender(places=3, places_per_job=2)
    assert answers(lend(machine, ONE, 1)) == [f.Lent(1, 101)]
    assert answers(lend(machine, ONE, 2)) == [f.Lent(2, 102)]
    assert "one job may have 2 of its places" in declined(lend(machine, ONE, 3))
    assert answers(lend(machine, TWO, 1)) == [f.Lent(1, 103)]
    assert "all 3 of them (--places), by 2 jobs" in declined(lend(machine, TWO, 2))
    machine.step(k.Lost(ONE), 0)
    assert machine.taken == 3
    assert "all 3" in declined(lend(machine, TWO, 2))
    machine.step(e.Finished(1, 0), 0)
    assert answers(lend(machine, TWO, 2)) == [f.Lent(2, 104)]


def test_what_a_launcher_that_is_gone_borrowed_is_asked_to_end_and_then_killed() -> None:
    machine = lender()
    lend(machine, ONE, 1)
    lend(machine, TWO, 1)
    kills = [effect for effect in machine.step(k.Lost(ONE), 1_000) if isinstance(effect, e.Kill)]
    assert kills == [e.Kill(1, SIGTERM), e.Kill(1, SIGCONT)]
    for now in range(1_050, 1_000 + GRACE_MS, 500):
        assert not [effect for effect in machine.step(k.Tick(), now) if isinstance(effect, e.Kill)]
    assert e.Kill(1, SIGKILL) in machine.step(k.Tick(), 1_000 + GRACE_MS)
    assert answers(machine.step(e.Finished(1, -9), 7_000)) == []
    assert answers(machine.step(e.Wrote(2, "hello"), 7_000)) == [f.Said(1, "hello")]


def test_a_launcher_that_is_silent_for_a_lease_is_cut() -> None:
    machine = lender()
    lend(machine, ONE, 1)
    cut: list[str] = []
    for now in range(0, 2 * LIMITS.lease_ms, 500):
        machine.step(k.Received(TWO, f.Pulse()), now)
        cut += [effect.peer for effect in machine.step(k.Tick(), now) if isinstance(effect, e.Cut)]
    assert cut == [ONE]


def test_a_launcher_reaches_its_own_processes_only_and_by_few_signals() -> None:
    machine = lender()
    lend(machine, ONE, 1)
    lend(machine, TWO, 7)
    assert machine.step(k.Received(ONE, f.Signal(7, SIGKILL)), 0) == []
    assert machine.step(k.Received(ONE, f.Signal(1, 19)), 0) == []
    assert machine.step(k.Received(ONE, f.Signal(1, SIGKILL)), 0) == [e.Kill(1, SIGKILL)]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"LD_PRELOAD": "/tmp/x.so"}, "'LD_PRELOAD' is no variable that a launcher may set"),
        ({"PYTHONPATH": "/tmp"}, "'PYTHONPATH' is no variable"),
        ({"SHOAL_LISTEN": "tcp://0.0.0.0:0"}, "'SHOAL_LISTEN' is no variable"),
        ({"SHOAL_TLS_KEY": "/etc/key"}, "'SHOAL_TLS_KEY' is no variable"),
        ({"SHOAL_FLEET_TOKEN": "x"}, "'SHOAL_FLEET_TOKEN' is no variable"),
        ({"SHOAL_JOB": "x\0"}, "a NUL"),
        ({"SHOAL_JOB": "x" * 5_000}, "more than 4096 characters"),
        ({f"SHOAL_{number}": "" for number in range(101)}, "101 variables are more than 100"),
    ],
)
def test_a_launcher_says_which_job_and_nothing_else(environment: dict[str, str], words: str) -> None:
    machine = lender()
    assert words in declined(lend(machine, ONE, 1, **environment))
    assert machine.taken == 0


def test_one_launcher_is_one_job() -> None:
    machine = lender()
    lend(machine, ONE, 1, "mine")
    assert "another job needs a launcher of its own" in declined(lend(machine, ONE, 2, "other"))
    assert "that of a process which runs" in declined(lend(machine, ONE, 1, "mine"))


def test_a_visitor_sees_and_a_launcher_s_whole_name_is_its_own() -> None:
    machine = lender()
    lend(machine, ONE, 1, "mine")
    (places,) = answers(machine.step(k.Received("visitor/1", f.PlacesRequest()), 5))
    assert places == f.Places(1, 2, 2, 1, (f.Loan("mine", "one-1", 5, (("server 1", 101),)),))
    assert machine.step(k.Received("visitor/1", f.Lend(1, "x", "server", {})), 5) == []


def test_who_takes_a_launcher_s_name_takes_none_of_its_processes() -> None:
    machine = lender()
    lend(machine, ONE, 1)
    assert e.Kill(1, SIGTERM) in machine.step(k.Regained(ONE), 0)
    assert machine.step(k.Received(ONE, f.Signal(1, SIGKILL)), 0) == []
    assert answers(machine.step(e.Wrote(1, "secret"), 0)) == []
    assert answers(lend(machine, ONE, 1)) == [f.Lent(1, 102)]
    machine.step(e.Finished(1, 0), 0)
    assert machine.step(k.Received(ONE, f.Signal(1, SIGKILL)), 0) == [e.Kill(2, SIGKILL)]


# --- the launcher's side ----------------------------------------------------------------------------


def borrower(*away: str) -> Borrower:
    machine = Borrower(["a", "b", "c"], LIMITS)
    for name in {"a", "b", "c"} - set(away):
        machine.step(k.Regained(name), 0)
    return machine


def borrow(machine: Borrower, number: int) -> list[k.Effect]:
    return machine.step(e.Borrow(number, "job", f"server {number}", {}), 0)


def asked(effects: list[k.Effect]) -> list[str]:
    return [effect.to for effect in effects if isinstance(effect, k.Send) and isinstance(effect.message, f.Lend)]


def test_members_are_asked_in_turn() -> None:
    machine = borrower()
    assert [asked(borrow(machine, number)) for number in range(4)] == [["a"], ["b"], ["c"], ["a"]]


def test_each_member_is_asked_at_most_once_and_the_reason_of_each_is_told() -> None:
    machine = borrower("b")
    assert asked(borrow(machine, 1)) == ["a"]
    assert asked(machine.step(k.Received("a", f.Declined(1, "full")), 0)) == ["c"]
    (answer,) = machine.step(k.Lost("c"), 0)
    assert answer == e.Unobtainable(1, "a: full; b: it is not connected; c: its connection broke")


def test_what_a_lost_member_lent_is_over_once() -> None:
    machine = borrower()
    borrow(machine, 1)
    assert machine.step(k.Received("b", f.Lent(1, 5)), 0) == [k.Send("b", f.Signal(1, SIGKILL))]  # was not asked
    assert machine.step(k.Received("a", f.Lent(1, 5)), 0) == [e.Obtained(1, "a", 5)]
    assert machine.step(k.Received("b", f.Said(1, "forged")), 0) == []
    assert machine.step(k.Received("a", f.Said(1, "hello")), 0) == [e.Heard(1, "hello")]
    assert machine.step(k.Lost("a"), 0) == [e.Over(1, -SIGKILL, "its a is gone: its connection broke")]
    assert machine.step(k.Received("a", f.Ended(1, 0)), 0) == []


def test_a_member_that_leaves_says_why() -> None:
    machine = borrower()
    borrow(machine, 1)
    machine.step(k.Received("a", f.Lent(1, 5)), 0)
    (over,) = machine.step(k.Received("a", f.Leaving("told to end")), 0)
    assert over == e.Over(1, -SIGKILL, "its a is gone: told to end")
    assert machine.step(k.Received("a", f.Ended(1, 0)), 0) == []


def test_a_member_that_is_silent_for_a_lease_is_gone_and_a_request_has_a_deadline() -> None:
    machine = borrower()
    borrow(machine, 1)
    borrow(machine, 2)
    machine.step(k.Received("b", f.Lent(2, 5)), 0)
    seen: list[k.Effect] = []
    for now in range(0, 2 * LIMITS.start_ms, 500):
        for name in ("a", "c"):
            machine.step(k.Received(name, f.Pulse()), now)
        seen += [effect for effect in machine.step(k.Tick(), now) if not isinstance(effect, k.Send)]
    cut, over, unanswered = seen
    assert isinstance(cut, e.Cut) and cut.peer == "b"
    assert isinstance(over, e.Over) and over.number == 2 and "it was silent for 10.0 s" in over.reason
    assert unanswered == e.Unobtainable(1, "a: no answer in start_ms=60000")
