"""Whoever writes a snapshot rests while others train, and only then."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest

from shoal.storage.pace import FREE_SECONDS, LOOK_SECONDS, STILL_SECONDS, Pace


@dataclass
class Machine:
    """One core; a commit every `every` seconds, until `ends`."""

    every: float
    ends: float = float("inf")
    clock: float = 0.0
    worked: float = 0.0
    rests: list[float] = field(default_factory=list)

    def trained(self) -> int:
        return int(min(self.clock, self.ends) / self.every)

    def rest(self, seconds: float) -> None:
        self.clock += seconds
        self.rests.append(seconds)

    def pace(self, share: float) -> Pace:
        return Pace(self.trained, share, lambda: self.worked, lambda: self.clock, self.rest)

    def write(self, pace: Pace, seconds: float, pieces: int = 100) -> None:
        for _ in range(pieces):
            self.worked += seconds / pieces
            self.clock += seconds / pieces
            pace()


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})


@pytest.mark.parametrize("every", [0.1, 0.9, 5.0])
def test_it_takes_its_share_of_the_time_while_others_train(every: float) -> None:
    machine = Machine(every, clock=1.0 if every < STILL_SECONDS else 0.0)
    pace = machine.pace(share=0.05)
    machine.clock += every
    pace._training()
    machine.write(pace, 1.0)
    assert 1.0 / machine.clock == pytest.approx(0.05, rel=0.2 if every < STILL_SECONDS else 0.5)
    assert max(machine.rests) <= LOOK_SECONDS


def test_a_small_one_does_not_rest() -> None:
    machine = Machine(every=0.1)
    machine.write(machine.pace(share=0.05), FREE_SECONDS)
    assert machine.rests == []


def test_where_nobody_trains_any_more_it_goes_on_at_full_speed() -> None:
    machine = Machine(every=0.2, ends=2.0)
    machine.write(machine.pace(share=0.05), 1.0)
    assert 2.0 + STILL_SECONDS < machine.clock < 2.0 + STILL_SECONDS + 1.0 + 2 * LOOK_SECONDS


def test_where_there_are_cores_enough_it_does_not_rest() -> None:
    machine = Machine(every=0.1)
    machine.write(machine.pace(share=1.0), 1.0)
    assert machine.rests == []
