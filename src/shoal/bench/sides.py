"""The sides of a benchmark: they are alive at once and take turns, and no step of a turn is lost.

A side's step takes as long as its slowest worker's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.bench.control import Conductor
from shoal.bench.orders import Answer, Order
from shoal.bench.verdict import verify

ORDER_SECONDS = 600.0

Show = Callable[[str, int, int], None]  # what is under way, turns done, turns in all


@dataclass(frozen=True)
class Seat:
    """Where a process runs. prefix: a command in front of its own. interface: the network's that it uses."""

    prefix: tuple[str, ...] = ()
    interface: str = "lo"


@dataclass(frozen=True)
class Place:
    """Where the sides run. host: where servers listen.

    servers: of all who have some, Shoal's coordinator too. workers: of those who have servers. alone:
    workers of peers without servers, dealt out in turn.
    """

    host: str = "127.0.0.1"
    servers: Seat = Seat()
    workers: Seat = Seat()
    alone: tuple[Seat, ...] = (Seat(),)


LOOPBACK = Place()


@dataclass
class Side:
    """Shoal, or a peer. workers: who takes the steps; helpers: its other processes."""

    name: str
    workers: Sequence[str]
    helpers: Sequence[str] = ()
    steps: int = 0  # taken in all
    difference: float = 0.0  # found when last checked
    digest: str = ""  # of its parameters then
    seconds: list[float] = field(default_factory=list)  # of each counted step

    def turn(
        self, steps: int, conductor: Conductor, meanwhile: Callable[[], None] | None = None, part: str = ""
    ) -> list[float]:
        """Take these steps; returns the seconds of each. meanwhile: called some ten times a second."""
        order = dict.fromkeys(self.workers, Order(steps, part))
        answers = conductor.ask(order, Answer, ORDER_SECONDS, f"{steps} steps", meanwhile)
        self.steps += steps
        return [max(each) for each in zip(*(answer.seconds for answer in answers.values()), strict=True)]

    def check(self, conductor: Conductor) -> None:
        """Raises WrongResultError when what came out so far is not what should have."""
        answers = conductor.ask(dict.fromkeys(self.workers, Order(0)), Answer, ORDER_SECONDS, "the check")
        self.difference = verify(self.name, answers.values())
        self.digest = next(digest for answer in answers.values() for digest in answer.digests)


def parts(steps: int, rounds: int) -> list[int]:
    """Steps dealt out over rounds, as evenly as can be."""
    return [steps * (number + 1) // rounds - steps * number // rounds for number in range(rounds)]
