"""A process's turn: takes steps when told to and times each, or says what came out of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from shoal.bench.control import Follower
from shoal.bench.orders import Answer, Order, Setup
from shoal.bench.workload import difference, digest, reference

Step = Callable[[int], None]  # takes the number of a step, counted from 0, and returns when it is over


def follow(control: str, name: str, steps: Mapping[str, Step], outcome: Callable[[int], Answer]) -> None:
    """Obey until the benchmark is over.

    steps: by the part that an order names, a function that takes a step, given its number (from 0, over
    all parts). outcome: given the number of steps taken, says what came out.
    """
    taken = 0
    follower = Follower(control, name, Order)
    for order in follower:
        if order.steps:
            step = steps[order.part]
            follower.answer(Answer(seconds=tuple(_timed(step, number) for number in range(taken, taken + order.steps))))
            taken += order.steps
        else:
            follower.answer(outcome(taken))


def outcome_of(setup: Setup, weights: Iterable[Tensor], steps: int) -> Answer:
    """What a worker's parameters came to after these steps; rank 0 compares them with the reference."""
    found = None
    if setup.rank == 0:
        found = difference(weights, reference(setup.params, setup.workers, setup.optimizer, steps))
    return Answer(digests=(digest(weights),), difference=found)


def _timed(step: Step, number: int) -> float:
    start = time.perf_counter()
    step(number)
    return time.perf_counter() - start
