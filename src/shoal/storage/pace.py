"""How fast a snapshot is written while training goes on: little of the cores' time, all of it once nobody trains.

Priorities do not do this: Linux weighs the threads of one session against each other only, and a thread of low
priority that is not let run while it holds the interpreter's lock holds up those that matter. So who writes counts
the processor time it uses, and rests in between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SHARE = 0.02  # of the time of all cores of this machine
FREE_SECONDS = 0.05  # of processor time in the beginning: small snapshots do not rest at all
REST_SECONDS_MIN = 0.01
LOOK_SECONDS = 0.05
STILL_SECONDS = 1.0  # without a commit, or twice as long as the last one took: nobody trains

Seconds = Callable[[], float]


class Pace:
    """Called now and then by the thread that writes, it rests when it is due.

    trained: counts the commits, so that it stands still while nobody trains.
    """

    def __init__(
        self,
        trained: Callable[[], int],
        share: float = SHARE,
        used: Seconds = time.thread_time,
        now: Seconds = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        self._trained, self._used, self._now, self._rest = trained, used, now, rest
        cores = len(os.sched_getaffinity(0))
        self._rest_per_second = max(0.0, 1 / (share * cores) - 1)
        self._paid = used() + FREE_SECONDS
        self._seen, self._seen_at, self._took = trained(), now(), 0.0

    def __call__(self) -> None:
        due = (self._used() - self._paid) * self._rest_per_second
        if due < REST_SECONDS_MIN:
            return
        until = self._now() + due
        while (left := until - self._now()) > 0 and self._training():
            self._rest(min(left, LOOK_SECONDS))
        self._paid = self._used()

    def _training(self) -> bool:
        now, trained = self._now(), self._trained()
        if trained != self._seen:
            self._took = now - self._seen_at
            self._seen, self._seen_at = trained, now
        return now - self._seen_at < max(STILL_SECONDS, 2 * self._took)


_pace: ContextVar[Callable[[], None] | None] = ContextVar("pace", default=None)


@contextmanager
def paced(trained: Callable[[], int]) -> Iterator[None]:
    """What this thread reads and writes of snapshots inside the `with` block, it does at that pace."""
    token = _pace.set(Pace(trained))
    try:
        yield
    finally:
        _pace.reset(token)


def keep_pace() -> None:
    """Called after every piece."""
    pace = _pace.get()
    if pace is not None:
        pace()
