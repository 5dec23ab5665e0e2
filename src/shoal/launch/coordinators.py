"""Which of a job's coordinators leads, and who comes after one that ends.

Without a registry another one is started, of the next epoch, where the last one was. With a registry one of those that
stand by leads next, and another one is started to stand by.
"""

from __future__ import annotations

import signal

from shoal.launch.child import Child
from shoal.launch.crew import Crew, coordinates
from shoal.launch.outcome import Outcome
from shoal.launch.restarts import Restarts
from shoal.launch.words import Say, ending, why
from shoal.runtime.process import DEPOSED


class Coordinators:
    """Those of one job. registered: it has a registry."""

    def __init__(self, registered: bool, crew: Crew, restarts: Restarts, outcome: Outcome, say: Say) -> None:
        self._registered = registered
        self._crew, self._restarts, self._outcome, self._say = crew, restarts, outcome, say
        self._leader: Child | None = None
        self._epoch = 1  # of the last one that was started where another one was

    def leads(self, child: Child, address: str) -> bool:
        """This coordinator leads, and is there. True: it is not where the last one was."""
        before, self._crew.leads_at = self._crew.leads_at, address
        former, self._leader = self._leader, child
        moved = before not in ("", address)
        if moved:
            self._say(f"{child} leads now, at {address}")
        if former is not None and former is not child and former in self._crew.nodes:
            former.signal(signal.SIGKILL)  # it hangs, or is about to end: another one is to stand by in its place
        return moved

    def silent(self, milliseconds: int) -> None:
        """A coordinator that hangs is killed, so that another one can take its place."""
        for child in self._crew.nodes:
            if child is self._leader and child not in self._crew.ready_by and self._outcome.open:
                self._say(f"{child} has not answered for {milliseconds / 1000:g} s: it is killed")
                child.signal(signal.SIGKILL)

    def takes_over(self, child: Child) -> bool:
        """Whether it is a coordinator in the place of another one: the job is under way."""
        return coordinates(child) and self._epoch > 1

    def ended(self, child: Child, status: int) -> bool:
        """Whether the end of this coordinator has been seen to."""
        who = f"{child} {ending(status)}"
        if self._is_followed(child, status):
            self._follow(f"{who}{why(child) if status > 0 else ''}")
            return True
        if status >= 0 or not (self._outcome.begun and self._outcome.open and self._restarts.left):
            return False
        self._say(f"{who}; started again ({self._restarts.take()})")
        self._crew.ready_by.pop(child, None)
        self._epoch += 1
        self._crew.start_coordinator(self._crew.leads_at, SHOAL_EPOCH=self._epoch)
        return True

    def _is_followed(self, child: Child, status: int) -> bool:
        """Whether the job goes on under another one, as the registry says."""
        over = status < 0 or status == DEPOSED
        return self._registered and over and (self._outcome.begun or child is not self._leader)

    def _follow(self, who: str) -> None:
        """Another one is started, to stand by; once no restart is left, those that do go on."""
        if self._outcome.open and self._restarts.left:
            self._say(f"{who}; another one is to stand by ({self._restarts.take()})")
            self._crew.start_standby()
        elif self._outcome.open and any(map(coordinates, self._crew.nodes)):
            self._say(f"{who}, and {self._restarts.spent}: the job goes on")
        else:
            self._outcome.lose(who)
