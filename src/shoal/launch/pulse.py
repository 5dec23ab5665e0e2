"""The job's pulse: its coordinator is asked for the status, over and over, and what comes of it is told.

A coordinator that hangs keeps its connections, so nobody but who asks it notices. Who is asked and does not
answer within half of lease_ms is as good as dead; by then nobody else in the job has given it up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shoal.errors import DeadlineError, ShoalError
from shoal.launch.jobs import JobRecord
from shoal.runtime import visitor
from shoal.wire.messages import Status

STATUS_SECONDS = 0.5
ASKED_MAX = 4  # times without an answer


@dataclass(frozen=True)
class Seen:
    """What the coordinator answered."""

    status: Status


@dataclass(frozen=True)
class Silent:
    """The coordinator was there to be asked, and has not answered for so long."""

    milliseconds: int


@contextmanager
def pulse(record: Callable[[], JobRecord], lease_ms: int, tell: Callable[[Seen | Silent], None]) -> Iterator[None]:
    """Ask on a thread of its own; tell is called there, and must be quick (SimpleQueue.put).

    record: where the coordinator is that leads now.
    """
    over = threading.Event()
    deadline_ms = max(1, lease_ms // 2 // ASKED_MAX)

    def ask() -> None:
        unanswered = 0
        while not over.wait(0 if unanswered else STATUS_SECONDS):
            try:
                at = record()
                tell(Seen(visitor.status(at.address, at.job, at.token, deadline_ms, at.tls)))
                unanswered = 0
            except DeadlineError:
                unanswered += 1
            except ShoalError:
                unanswered = 0  # it ends, or another one begins: that shows by itself
                over.wait(STATUS_SECONDS)
            if unanswered == ASKED_MAX:
                tell(Silent(deadline_ms * ASKED_MAX))
                unanswered = 0

    thread = threading.Thread(target=ask, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
