"""The processes of a job that run, and how one more is started.

How a node is told what it is: SHOAL_JOB, SHOAL_TOKEN (a fresh secret), SHOAL_COORDINATOR (an address),
SHOAL_WORKERS, SHOAL_SERVERS, SHOAL_REPLICAS, SHOAL_RANK and SHOAL_ESTATE (workers; a descriptor of what an earlier
life left, see estate.py), SHOAL_GROUP and what torch.distributed reads (workers in groups, see groups.py),
SHOAL_SERVER_INDEX (servers), SHOAL_EPOCH (a coordinator that takes over), SHOAL_REGISTRY (its URL, if any),
SHOAL_RESUME (a snapshot, if any), and the limits as SHOAL_<LIMIT>.
(What nodes print for their launcher: words.py.)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

from shoal.launch.borrowed import Emit, Fleet
from shoal.launch.child import Child, ChildProcess
from shoal.launch.estate import Estates
from shoal.launch.plan import Plan
from shoal.runtime import process
from shoal.vocabulary import COORDINATOR

COORDINATOR_PROGRAM = ("-m", "shoal.runtime.coordinator")
SERVER_PROGRAM = ("-m", "shoal.runtime.server")


class Crew:
    """Those of one job. emit is told all that they say, and their end; who hears of one that has ended takes it out.

    fleet: lends places for servers, where there is one.
    """

    def __init__(self, plan: Plan, environment: Mapping[str, str], emit: Emit, fleet: Fleet | None) -> None:
        self.nodes: list[Child] = []  # coordinators and servers
        self.workers: dict[Child, int] = {}  # with their ranks
        self.ready_by: dict[Child, float] = {}  # nodes that are not ready yet
        self.leads_at = ""  # the address of the coordinator that leads, once known: the others are told
        self._plan, self._environment, self._emit, self._fleet = plan, environment, emit, fleet
        self._servers = 0  # started so far
        self._standbys = 0  # coordinators started beside the first
        self._estates = Estates()  # what killed workers leave to those that are started in their place

    def start_coordinator(self, listen: str, **facts: object) -> None:
        self._start_node(COORDINATOR, (*COORDINATOR_PROGRAM, "--listen", listen), **facts)

    def start_standby(self) -> None:
        """A coordinator that leads once the registry lets it, which may be never; until then it says nothing."""
        self._standbys += 1
        listen = f"tcp://{self._plan.host}:0"
        name = f"{COORDINATOR} {self._standbys + 1}"
        self.nodes.append(self._start(name, (*COORDINATOR_PROGRAM, "--listen", listen)))

    def start_server(self, **facts: object) -> None:
        """Another server: no two of a job have the same number, not even one after the other."""
        self._start_node(f"server {self._servers}", SERVER_PROGRAM, SHOAL_SERVER_INDEX=self._servers, **facts)
        self._servers += 1

    def start_worker(self, rank: int, **facts: object) -> Child:
        threads = max(1, len(os.sched_getaffinity(0)) // self._plan.workers)
        facts |= {"SHOAL_RANK": rank, "OMP_NUM_THREADS": self._environment.get("OMP_NUM_THREADS", threads)}
        left = self._estates.of(rank)
        if left is not None:
            facts[process.ESTATE] = left
        child = self._start(f"worker {rank}", ("-u", *self._plan.command), **facts)
        self.workers[child] = rank
        return child

    def close(self) -> None:
        """Forget what killed workers have left: nobody is started any more."""
        self._estates.close()

    def _start_node(self, name: str, program: Sequence[str], **facts: object) -> None:
        child = self._start(name, program, **facts)
        self.nodes.append(child)
        self.ready_by[child] = time.monotonic() + self._plan.limits.start_ms / 1000

    def _start(self, name: str, arguments: Sequence[str], **facts: object) -> Child:
        if self.leads_at:
            facts["SHOAL_COORDINATOR"] = self.leads_at
        environment = self._plan.environment(self._environment, facts)
        if self._fleet is not None and arguments is SERVER_PROGRAM:
            return self._fleet.start(name, environment, self._emit)
        left = facts.get(process.ESTATE)
        descriptors = (left,) if isinstance(left, int) else ()
        return ChildProcess(name, (sys.executable, *arguments), environment, self._emit, descriptors)


def coordinates(child: Child) -> bool:
    """Whether it is a coordinator, one that stands by among them."""
    return child.name.partition(" ")[0] == COORDINATOR
