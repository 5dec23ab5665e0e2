"""The servers of a job whose parts others hold, too: each that ends or is to leave is followed by another one."""

from __future__ import annotations

import signal

from shoal.launch.child import Child
from shoal.launch.crew import Crew, coordinates
from shoal.launch.outcome import Outcome
from shoal.launch.restarts import Restarts
from shoal.launch.words import Say, ending, why
from shoal.wire.messages import Status


class Servers:
    """Those of one job. replicas: of each part."""

    def __init__(self, replicas: int, crew: Crew, restarts: Restarts, outcome: Outcome, say: Say) -> None:
        self._replicas = replicas
        self._crew, self._restarts, self._outcome, self._say = crew, restarts, outcome, say
        self._known: set[Child] = set()  # that the coordinator has counted as its own
        self._leaving: set[Child] = set()  # whose part others are to take over

    def has_replicas(self, child: Child) -> bool:
        """Whether it is a server whose part others have, too: without it the job goes on."""
        return not coordinates(child) and self._replicas > 1 and self._outcome.begun

    def check(self, status: Status) -> None:
        """A server that the coordinator took for dead is killed, if it is not: another one can take its place."""
        states = {member.name: member.state for member in status.members}
        for child in list(self._crew.nodes):
            if not self.has_replicas(child) or status.phase != "running" or not self._outcome.open:
                continue
            state = states.get(child.name.replace(" ", "/"))
            if state is not None:
                self._known.add(child)
            if state is not None and state.startswith("leaves") and child not in self._leaving:
                self._leaving.add(child)
                if "spare" not in states.values():
                    self._say(f"{child} is to leave: another one is started for its part")
                    self._crew.start_server(SHOAL_RESUME="")
            if state is None and child in self._known and child not in self._leaving:
                self._known.discard(child)
                self._say(f"{child} was taken for dead by the coordinator: it is killed")
                child.signal(signal.SIGKILL)

    def ended(self, child: Child, status: int) -> bool:
        """Whether the end of this server has been seen to: the job goes on without it."""
        self._known.discard(child)
        if child in self._leaving:
            self._leaving.remove(child)
            self._say(f"{child} has left")
            return True
        if not self.has_replicas(child) or status == 0:
            return False
        self._crew.ready_by.pop(child, None)
        if self._outcome.open:
            self._follow(f"{child} {ending(status)}{why(child)}")
        return True

    def _follow(self, who: str) -> None:
        """Another one is started; once no restart is left, the job goes on with fewer."""
        if self._restarts.left:
            self._say(f"{who}; another one is started ({self._restarts.take()})")
            self._crew.start_server(SHOAL_RESUME="")  # the others know more than any snapshot
        else:
            self._say(f"{who}, and {self._restarts.spent}: the job goes on")
