"""The workers of a job: those that are killed are started again, and one that fails by itself ends the job.

What is started again is a whole group, since none can lose a rank. A rank that fails may do so only because another
one of its group died, so its verdict waits a little for that to show.
"""

from __future__ import annotations

import signal
import time

from shoal.core.membership import DECLARED
from shoal.errors import StartupError
from shoal.launch.child import GRACE_SECONDS, Child
from shoal.launch.crew import Crew, coordinates
from shoal.launch.groups import Groups
from shoal.launch.outcome import Outcome
from shoal.launch.plan import Plan
from shoal.launch.restarts import Restarts
from shoal.launch.words import Say, ending
from shoal.vocabulary import node_number
from shoal.wire.messages import Status

SETTLE_SECONDS = 0.5  # after a failure: what else fails shows which failure came first
GROUP_SETTLE_SECONDS = 2.0  # the same for a rank of a group, whose failure may follow from another's


class Workers:
    """Those of one job."""

    def __init__(self, plan: Plan, crew: Crew, restarts: Restarts, outcome: Outcome, say: Say) -> None:
        self._plan, self._crew, self._restarts, self._outcome, self._say = plan, crew, restarts, outcome, say
        self._groups = Groups(plan.group)
        self._ended_well: list[str] = []
        self._hanging: dict[Child, float] = {}  # that were declared dead and have not ended, since when
        self._doubtful: int | None = None  # the group that the verdict comes from: it may follow from a rank's death

    def start(self) -> None:
        """Start all of them."""
        for rank in range(self._plan.workers):
            self._start(rank)

    def check(self, status: Status) -> None:
        """The coordinator has said how they are."""
        self._check_forming(status)
        self._check_hanging(status)
        self._check_groups(status)

    def ended(self, child: Child, status: int) -> None:
        """A worker has ended."""
        group = self._groups.of(self._crew.workers.pop(child))
        if group in self._groups.ending:
            self._groups.ending[group].discard(child)
            self._start_ended_group(group)
            return
        if status < 0 and group == self._doubtful:
            self._withdraw()  # the other rank failed because this one was killed
        if not self._outcome.open:
            return
        who = f"{child} {ending(status)}"
        if status == 0:
            self._ended_well.append(who)
        elif status < 0 and self._restarts.left and any(map(coordinates, self._crew.nodes)):
            self._say(f"{who}; started again ({self._restarts.take()})")
            self._start_again(group)
        else:
            self._fail(who, group, status)

    def _fail(self, who: str, group: int, status: int) -> None:
        """The job ends with this worker's status."""
        spent = f" and {self._restarts.spent}" if status < 0 and not self._restarts.left else ""
        self._say(f"{who}{spent}; the job ends with it")
        self._doubtful = group if status > 0 and self._plan.group > 1 else None
        settle = SETTLE_SECONDS if self._doubtful is None else GROUP_SETTLE_SECONDS
        self._outcome.decide(status if status > 0 else 128 - status, settle=settle)

    def _start(self, rank: int) -> None:
        self._groups.children[rank] = self._crew.start_worker(rank, **self._groups.facts(rank))

    def _start_again(self, group: int) -> None:
        """Start all of a group, once those of it that run have ended."""
        if self._plan.group > 1:
            self._say(f"workers {', '.join(map(str, self._groups.ranks(group)))} are one group: all of it starts again")
        running = {child for child, rank in self._crew.workers.items() if self._groups.of(rank) == group}
        for child in running:
            child.signal(signal.SIGKILL)
        self._groups.ending[group] = running
        self._start_ended_group(group)

    def _start_ended_group(self, group: int) -> None:
        if not self._groups.ending[group] and self._outcome.open:
            del self._groups.ending[group]
            for rank in self._groups.ranks(group):
                self._start(rank)

    def _check_forming(self, status: Status) -> None:
        """Whether workers that are ready to begin wait for one that will never come."""
        waiting = [f"worker {node_number(member.name)}" for member in status.members if member.state == DECLARED]
        if self._outcome.open and status.phase == "forming" and self._ended_well and waiting:
            self._outcome.decide(
                StartupError(
                    f"{self._ended_well[0]} before the job began, and {', '.join(waiting)} waits for it in vain: "
                    f"each of the {self._plan.workers} workers must come to ps.optimizer(...); or start fewer workers"
                )
            )

    def _check_hanging(self, status: Status) -> None:
        """A worker that was declared dead ends by itself when it hears of it. One that hangs is killed, for another one
        to take its place."""
        for child, rank in self._crew.workers.items():
            if (rank, child.pid) not in status.buried or not self._outcome.open:
                self._hanging.pop(child, None)
                continue
            since = self._hanging.setdefault(child, time.monotonic())
            if time.monotonic() - since >= max(GRACE_SECONDS, self._plan.limits.lease_ms / 1000):
                self._say(f"{child} was declared dead and did not end: it is killed")
                child.signal(signal.SIGKILL)

    def _check_groups(self, status: Status) -> None:
        """A rank that ended by itself because the coordinator had declared another one dead is no verdict."""
        group = self._doubtful
        if group is None or not self._groups.buried(group, dict(status.buried)):
            return
        self._withdraw()
        if self._restarts.left:
            restart = self._restarts.take()
            self._say(f"group {group} was declared dead; all of it is started again ({restart})")
            self._start_again(group)
        else:
            self._outcome.decide(1)

    def _withdraw(self) -> None:
        self._doubtful = None
        self._outcome.withdraw()
