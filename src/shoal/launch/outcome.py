"""How a job ends: the verdict on it, which a failure that lies deeper may still overturn until it is due."""

from __future__ import annotations

import time
from collections.abc import Callable

from shoal.errors import JobError, ShoalError, StartupError

WayOn = Callable[[], str]


class Outcome:
    """Of one job. way_on: what the user can do next, asked once a node of a running job has died."""

    def __init__(self, way_on: WayOn) -> None:
        self.begun = False  # the job runs
        self.due: float | None = None  # when the verdict holds; None: there is none
        self._status: int | ShoalError = 0
        self._way_on = way_on

    @property
    def open(self) -> bool:
        """Nothing is decided: the job goes on."""
        return self.due is None

    def decide(self, status: int | ShoalError, settle: float = 0.0) -> None:
        """The job ends so in `settle` seconds, unless a worker's failure turns out to follow from a node's."""
        if self.open or (isinstance(status, ShoalError) and isinstance(self._status, int)):
            self.due, self._status = time.monotonic() + settle, status

    def interrupt(self, number: int) -> None:
        """The user wants it to end, whatever was decided."""
        self.due, self._status = time.monotonic(), 128 + number

    def withdraw(self) -> None:
        """What was decided followed from what does not end the job."""
        self.due, self._status = None, 0

    def lose(self, who: str) -> None:
        """The job ends for want of a node. who: and what became of it."""
        if self.begun:
            needed = "the job cannot go on without any of its servers and its coordinator"
            self.decide(JobError(f"{who}; {needed}: {self._way_on()}"))
        else:
            self.decide(StartupError(f"{who}; the job had not begun, so nothing is lost"))

    def give_up(self, why: str, under_way: bool) -> None:
        """The job ends because a node is not ready. under_way: it was to take the place of one that is gone."""
        self.decide(JobError(f"{why}. {self._way_on()}") if under_way else StartupError(why))

    def status(self) -> int:
        """The exit status; raises the error that was decided."""
        if isinstance(self._status, ShoalError):
            raise self._status
        return self._status
