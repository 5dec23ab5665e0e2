"""Runs a whole job: coordinator, servers and workers as processes of their own, on this machine.

With a fleet (SHOAL_FLEET, see borrowed.py) its members start the servers.

What is promised: every process of the job has been ended when `launch` returns or raises, and also
when the launcher itself is killed. Nothing is waited for without a deadline. The exit status is the
script's own.

    a worker exits with 0          the job ends well once all of them have; StartupError if the others
                                   wait for it to begin
    a worker exits with 1..255     the script's own verdict: the job ends with that status
    a worker is killed by signal   it is started again, with all of its group, max_restarts times in the whole job
    the coordinator is killed,     the same, once the job runs: another one takes over where it was
    or answers nothing for half   with a registry one that stands by takes over, and another one is started to stand by
    of lease_ms                   in its place; so does a coordinator that ends because the registry let another lead
    a server ends, with replicas   another one is started (it counts as a restart) and given its part by those that
                                   have it; one that the coordinator took for dead is killed first
    a server ends, or the          JobError (StartupError before the job began), naming it and the way on,
    coordinator by itself          unless all of them end with 0: then the job was told that it is over
    Ctrl-C, SIGTERM, SIGHUP        the job ends with 128 + the signal's number (130 for Ctrl-C)

How a node is told what it is: SHOAL_JOB, SHOAL_TOKEN (a fresh secret), SHOAL_COORDINATOR (an address),
SHOAL_WORKERS, SHOAL_SERVERS, SHOAL_REPLICAS, SHOAL_RANK and SHOAL_ESTATE (workers; a descriptor of what an earlier
life left, see estate.py), SHOAL_GROUP and what torch.distributed reads (workers in groups, see groups.py),
SHOAL_SERVER_INDEX (servers), SHOAL_EPOCH (a coordinator that takes over), SHOAL_REGISTRY (its URL, if any),
SHOAL_RESUME (a snapshot, if any), and the limits as SHOAL_<LIMIT>.
Coordinator and servers print one line "SHOAL READY <address>" when they are, the coordinator "SHOAL
BEGUN" when the job runs; what makes them give up, they print as "shoal: error: ...".
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import assert_never

from shoal.config import Limits
from shoal.core.membership import DECLARED
from shoal.errors import JobError, ShoalError, StartupError
from shoal.launch.borrowed import Fleet, borrowing
from shoal.launch.child import Child, ChildProcess, Exited, Line
from shoal.launch.estate import Estates
from shoal.launch.groups import Groups
from shoal.launch.jobs import JobRecord, published
from shoal.launch.plan import Plan, prepared
from shoal.launch.printer import Printer
from shoal.launch.pulse import Seen, Silent, pulse
from shoal.runtime import process
from shoal.vocabulary import COORDINATOR, node_number
from shoal.wire.messages import Status

COORDINATOR_PROGRAM = ("-m", "shoal.runtime.coordinator")
SERVER_PROGRAM = ("-m", "shoal.runtime.server")

LAUNCHER = "shoal"  # the source of lines that the launcher itself has to say
READY = "SHOAL READY "
BEGUN = "SHOAL BEGUN"
ERROR = "shoal: error: "

GRACE_SECONDS = 5.0  # between asking a process to end and killing it
GROUP_SETTLE_SECONDS = 2.0  # the same for a rank of a group, whose failure may follow from another's
SETTLE_SECONDS = 0.5  # after a failure: what else fails shows which failure came first

OnLine = Callable[[str, str], None]  # (source, text); source is "worker 0", "server 1", "coordinator" or "shoal"
OnStatus = Callable[[Status], None]
WayOn = Callable[[], str]


def launch(
    command: Sequence[str],
    workers: int,
    servers: int,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    max_restarts: int = 3,
    replicas: int = 1,
    registry: str = "",
    standbys: int = 1,
    group: int = 1,
    resume: Path | str | None = None,
    on_line: OnLine | None = None,
    on_status: OnStatus | None = None,
    way_on: WayOn = lambda: "start again from the last snapshot with --resume PATH",
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> int:
    """Runs `command` on `workers` workers against `servers` servers and returns its exit status.

    replicas: server processes that hold each part of the parameters; with 2 or more the death of one ends nothing.
    registry: the URL of one that says which coordinator leads (docs/registry.md), and standbys: how many more of them
    there are to be, only with a registry.
    group: so many workers in a row find each other by torch.distributed.init_process_group(), to train as one
    (docs/groups.md).

    command: ("script.py", arguments...) or ("-m", "module", arguments...). env: the workers' and nodes'
    environment in place of this process's. port 0: any free one. resume: a snapshot to begin from.
    on_line gets every line of output (default: printed with its source in front), on_status the
    job's status twice a second; both are called on the calling thread, never at the same time. way_on is
    asked, once a node of a running job has died, for what the user can do next.

    Workers get OMP_NUM_THREADS, unless it is set, so that together they use each core once.

    Raises ConfigurationError for arguments that cannot work, SnapshotError for a snapshot that cannot be
    read, StartupError when a node is not ready within limits.start_ms, the fleet has no place for a server, or the
    job cannot begin, RefusedError when a member of the fleet says no, JobError when a node ends while workers need it.
    """
    environment = dict(os.environ if env is None else env)
    plan = prepared(
        command,
        workers,
        servers,
        host=host,
        port=port,
        max_restarts=max_restarts,
        replicas=replicas,
        registry=registry,
        standbys=standbys if registry else 0,
        group=group,
        resume=resume,
        environment=environment,
        limits=limits,
    )
    return _Launch(plan, environment, Printer() if on_line is None else on_line, on_status, way_on).run()


@dataclass(frozen=True)
class _Interrupted:
    number: int


@dataclass(frozen=True)
class _Verdict:
    """How the job ends, once `due`: until then a failure that lies deeper may still show."""

    due: float
    status: int | ShoalError


_Event = Line | Exited | _Interrupted | Seen | Silent


class _Launch:
    """One run of a plan: reads one queue of events, on one thread, and acts on each."""

    def __init__(
        self,
        plan: Plan,
        environment: Mapping[str, str],
        on_line: OnLine,
        on_status: OnStatus | None,
        way_on: WayOn,
    ) -> None:
        self._plan = plan
        self._environment = environment
        self._on_line = on_line
        self._on_status = on_status
        self._way_on = way_on
        self._stack = ExitStack()  # what ends with the run
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._coordinator = ""  # the address of the one that leads, once known
        self._leader: Child | None = None  # that coordinator
        self._standbys = 0  # coordinators started beside the first
        self._publishing = ExitStack()
        self._nodes: list[Child] = []  # coordinator and servers that run
        self._workers: dict[Child, int] = {}  # those that run, with their ranks
        self._ready_by: dict[Child, float] = {}  # nodes that are not ready yet
        self._begun = False  # the job runs
        self._ended_well: list[str] = []  # workers
        self._left: tuple[str, float] | None = None  # the first node that ended with 0; the others follow by then
        self._restarts = 0
        self._epoch = 1  # of the coordinator
        self._servers = 0  # started so far
        self._known: set[Child] = set()  # servers that the coordinator has counted as its own
        self._leaving: set[Child] = set()  # servers whose part others are to take over
        self._hanging: dict[Child, float] = {}  # workers that were declared dead and have not ended, since when
        self._fleet: Fleet | None = None  # lends places for servers
        self._estates = Estates()  # what killed workers leave to those that are started in their place
        self._verdict: _Verdict | None = None
        self._groups = Groups(plan.group)
        self._doubtful: int | None = None  # the group that the verdict comes from: it may follow from a rank's death

    def run(self) -> int:
        with self._stack as stack:
            self._fleet = stack.enter_context(borrowing(self._plan.job, self._plan.fleet, self._environment))
            stack.enter_context(_signals(self._events))
            stack.callback(self._estates.close)
            stack.callback(self._end_all)
            self._start_coordinator(self._plan.listen)
            self._attend(until=lambda: bool(self._coordinator))
            if self._verdict is None:
                stack.callback(self._publishing.close)
                self._publish()
                for _ in range(self._plan.standbys):
                    self._start_standby()
                for _ in range(self._plan.server_processes):
                    self._start_server()
                for rank in range(self._plan.workers):
                    self._start_worker(rank)
                stack.enter_context(pulse(lambda: self._record, self._plan.limits.lease_ms, self._events.put))
                self._attend(until=lambda: not self._workers)
            status = self._verdict.status if self._verdict else 0
            if isinstance(status, ShoalError):
                raise status
            return status

    @property
    def _record(self) -> JobRecord:
        return JobRecord(
            self._plan.job, self._coordinator, self._plan.token, os.getpid(), self._plan.tls, self._plan.registry
        )

    def _publish(self) -> None:
        """Let others on this machine find the job, where it is now."""
        self._publishing.close()
        self._publishing.enter_context(published(self._record))

    # --- starting -----------------------------------------------------------------------------------

    def _start_node(self, name: str, program: Sequence[str], **facts: object) -> None:
        child = self._start(name, program, **facts)
        self._nodes.append(child)
        self._ready_by[child] = time.monotonic() + self._plan.limits.start_ms / 1000

    def _start_coordinator(self, listen: str, **facts: object) -> None:
        self._start_node(COORDINATOR, (*COORDINATOR_PROGRAM, "--listen", listen), **facts)

    def _start_standby(self) -> None:
        """A coordinator that leads once the registry lets it, which may be never; until then it says nothing."""
        self._standbys += 1
        listen = f"tcp://{self._plan.host}:0"
        name = f"{COORDINATOR} {self._standbys + 1}"
        self._nodes.append(self._start(name, (*COORDINATOR_PROGRAM, "--listen", listen)))

    def _start_server(self, **facts: object) -> None:
        """Another server: no two of a job have the same number, not even one after the other."""
        self._start_node(f"server {self._servers}", SERVER_PROGRAM, SHOAL_SERVER_INDEX=self._servers, **facts)
        self._servers += 1

    def _start_worker(self, rank: int) -> None:
        threads = max(1, len(os.sched_getaffinity(0)) // self._plan.workers)
        facts = {"SHOAL_RANK": rank, "OMP_NUM_THREADS": self._environment.get("OMP_NUM_THREADS", threads)}
        left = self._estates.of(rank)
        if left is not None:
            facts[process.ESTATE] = left
        child = self._start(f"worker {rank}", ("-u", *self._plan.command), **facts, **self._groups.facts(rank))
        self._workers[child], self._groups.children[rank] = rank, child

    def _start(self, name: str, arguments: Sequence[str], **facts: object) -> Child:
        if self._coordinator:
            facts["SHOAL_COORDINATOR"] = self._coordinator
        environment = self._plan.environment(self._environment, facts)
        if self._fleet is not None and arguments is SERVER_PROGRAM:
            return self._fleet.start(name, environment, self._events.put)
        left = facts.get(process.ESTATE)
        descriptors = (left,) if isinstance(left, int) else ()
        return ChildProcess(name, (sys.executable, *arguments), environment, self._events.put, descriptors)

    # --- attending ----------------------------------------------------------------------------------

    def _attend(self, until: Callable[[], bool]) -> None:
        """Acts on events until the condition holds, or there is a verdict and it is due."""
        while self._verdict is not None or not until():
            self._check_nodes()
            left = self._seconds_left()
            if self._verdict is not None and left == 0.0:
                return
            try:
                event = self._events.get(timeout=left)
            except Empty:
                continue
            self._act(event)

    def _seconds_left(self) -> float | None:
        """Until the verdict is due or, while there is none, a node is late at something; None: nothing can be."""
        due = [self._verdict.due] if self._verdict else [*self._ready_by.values()]
        if self._left is not None and self._nodes and self._verdict is None:
            due.append(self._left[1])
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _act(self, event: _Event) -> None:
        match event:
            case Line(child, text):
                self._line(child, text)
            case Exited(child, status) if child in self._workers:
                self._worker_ended(child, self._workers.pop(child), status)
            case Exited(child, status):
                self._nodes.remove(child)
                self._node_ended(child, status)
            case _Interrupted(number):
                self._verdict = _Verdict(time.monotonic(), 128 + number)
            case Seen(job_status):
                self._check_forming(job_status)
                self._check_servers(job_status)
                self._check_workers(job_status)
                self._check_groups(job_status)
                if self._on_status is not None:
                    self._on_status(job_status)
            case Silent(milliseconds):
                self._end_silent(milliseconds)
            case _:
                assert_never(event)

    def _line(self, child: Child, text: str) -> None:
        if _coordinates(child) and text.startswith(READY):
            self._ready_by.pop(child, None)
            self._leads(child, text.removeprefix(READY).strip())
        elif child in self._ready_by and text.startswith(READY):
            del self._ready_by[child]
        elif text == BEGUN and _coordinates(child):
            self._begun = True
        else:
            self._on_line(child.name, text)

    def _leads(self, child: Child, address: str) -> None:
        """This coordinator leads, and is there."""
        before, self._coordinator = self._coordinator, address
        former, self._leader = self._leader, child
        if before not in ("", address):
            self._say(f"{child.name} (pid {child.pid}) leads now, at {address}")
            self._publish()
        if former is not None and former is not child and former in self._nodes:
            former.signal(signal.SIGKILL)  # it hangs, or is about to end: another one is to stand by in its place

    def _worker_ended(self, child: Child, rank: int, status: int) -> None:
        group = self._groups.of(rank)
        if group in self._groups.ending:
            self._groups.ending[group].discard(child)
            self._start_ended_group(group)
            return
        if status < 0 and group == self._doubtful:
            self._verdict = self._doubtful = None  # the other rank failed because this one was killed
        if self._verdict is not None:
            return
        who = f"{child.name} (pid {child.pid}) {_ending(status)}"
        if status == 0:
            self._ended_well.append(who)
            return
        if any(map(_coordinates, self._nodes)) and self._may_start_again(who, status):
            self._start_again(group)
            return
        allowed = self._plan.max_restarts
        spent = status < 0 and self._restarts >= allowed
        hint = f" and no restart is left of {allowed} (--max-restarts)" if spent else ""
        self._say(f"{who}{hint}; the job ends with it")
        self._doubtful = group if status > 0 and self._plan.group > 1 else None
        settle = SETTLE_SECONDS if self._doubtful is None else GROUP_SETTLE_SECONDS
        self._decide(status if status > 0 else 128 - status, settle=settle)

    def _start_again(self, group: int) -> None:
        """Start all of a group, once those of it that run have ended."""
        if self._plan.group > 1:
            self._say(f"workers {', '.join(map(str, self._groups.ranks(group)))} are one group: all of it starts again")
        running = {child for child, rank in self._workers.items() if self._groups.of(rank) == group}
        for child in running:
            child.signal(signal.SIGKILL)
        self._groups.ending[group] = running
        self._start_ended_group(group)

    def _start_ended_group(self, group: int) -> None:
        if not self._groups.ending[group] and self._verdict is None:
            del self._groups.ending[group]
            for rank in self._groups.ranks(group):
                self._start_worker(rank)

    def _check_groups(self, status: Status) -> None:
        """A rank that ended by itself because the coordinator had declared another one dead is no verdict."""
        group = self._doubtful
        if group is not None and self._groups.buried(group, dict(status.buried)):
            self._verdict = self._doubtful = None
            if self._restarts < self._plan.max_restarts:
                self._restarts += 1
                restart = f"restart {self._restarts} of {self._plan.max_restarts}"
                self._say(f"group {group} was declared dead; all of it is started again ({restart})")
                self._start_again(group)
            else:
                self._decide(1)

    def _may_start_again(self, who: str, status: int) -> bool:
        """Whether a process that ended so is started again; what ends by itself is not."""
        restarts, allowed = self._restarts + 1, self._plan.max_restarts
        if self._verdict is not None or status >= 0 or restarts > allowed:
            return False
        self._restarts = restarts
        self._say(f"{who}; started again (restart {restarts} of {allowed})")
        return True

    def _end_silent(self, milliseconds: int) -> None:
        """A coordinator that hangs is killed, so that another one can take its place."""
        for child in self._nodes:
            if child is self._leader and child not in self._ready_by and self._verdict is None:
                silent = f"has not answered for {milliseconds / 1000:g} s"
                self._say(f"{child.name} (pid {child.pid}) {silent}: it is killed")
                child.signal(signal.SIGKILL)

    def _check_servers(self, status: Status) -> None:
        """A server that the coordinator took for dead is killed, if it is not: another one can take its place."""
        states = {member.name: member.state for member in status.members}
        for child in list(self._nodes):
            if not self._has_replicas(child) or status.phase != "running" or self._verdict is not None:
                continue
            state = states.get(child.name.replace(" ", "/"))
            if state is not None:
                self._known.add(child)
            if state is not None and state.startswith("leaves") and child not in self._leaving:
                self._leaving.add(child)
                if "spare" not in states.values():
                    self._say(f"{child.name} (pid {child.pid}) is to leave: another one is started for its part")
                    self._start_server(SHOAL_RESUME="")
            if state is None and child in self._known and child not in self._leaving:
                self._known.discard(child)
                self._say(f"{child.name} (pid {child.pid}) was taken for dead by the coordinator: it is killed")
                child.signal(signal.SIGKILL)

    def _check_workers(self, status: Status) -> None:
        """A worker that was declared dead ends by itself when it hears of it. One that hangs is killed, for another one
        to take its place."""
        for child, rank in self._workers.items():
            if (rank, child.pid) not in status.buried or self._verdict is not None:
                self._hanging.pop(child, None)
                continue
            since = self._hanging.setdefault(child, time.monotonic())
            if time.monotonic() - since >= max(GRACE_SECONDS, self._plan.limits.lease_ms / 1000):
                self._say(f"{child.name} (pid {child.pid}) was declared dead and did not end: it is killed")
                child.signal(signal.SIGKILL)

    def _takes_over(self, child: Child) -> bool:
        """Whether it is a coordinator in the place of another one: the job is under way."""
        return _coordinates(child) and self._epoch > 1

    def _has_replicas(self, child: Child) -> bool:
        """Whether it is a server whose part others have, too: without it the job goes on."""
        return not _coordinates(child) and self._plan.replicas > 1 and self._begun

    def _server_ended(self, who: str, status: int) -> None:
        """Another one is started; once no restart is left, the job goes on with fewer."""
        if self._verdict is None and self._restarts < self._plan.max_restarts:
            self._restarts += 1
            self._say(f"{who}; another one is started (restart {self._restarts} of {self._plan.max_restarts})")
            self._start_server(SHOAL_RESUME="")  # the others know more than any snapshot
        elif self._verdict is None:
            self._say(f"{who}, and no restart is left of {self._plan.max_restarts} (--max-restarts): the job goes on")

    def _is_followed(self, child: Child, status: int) -> bool:
        """Whether it is a coordinator without which the job goes on under another, as the registry says."""
        over = status < 0 or status == process.DEPOSED
        return _coordinates(child) and bool(self._plan.registry) and over and (self._begun or child is not self._leader)

    def _coordinator_ended(self, who: str) -> None:
        """Another one is started, to stand by; once no restart is left, those that do go on."""
        left = [node for node in self._nodes if _coordinates(node)]
        if self._verdict is None and self._restarts < self._plan.max_restarts:
            self._restarts += 1
            self._say(f"{who}; another one is to stand by (restart {self._restarts} of {self._plan.max_restarts})")
            self._start_standby()
        elif left and self._verdict is None:
            self._say(f"{who}, and no restart is left of {self._plan.max_restarts} (--max-restarts): the job goes on")
        else:
            self._decide(self._lost(who))

    def _node_ended(self, child: Child, status: int) -> None:
        who = f"{child.name} (pid {child.pid}) {_ending(status)}"
        self._known.discard(child)
        if child in self._leaving:
            self._leaving.remove(child)
            self._say(f"{child.name} (pid {child.pid}) has left")
        elif self._has_replicas(child) and status != 0:
            self._ready_by.pop(child, None)
            self._server_ended(f"{who}{_why(child)}", status)
        elif self._is_followed(child, status):
            self._coordinator_ended(f"{who}{_why(child) if status > 0 else ''}")
        elif self._ready_by.pop(child, None) is not None and not self._takes_over(child):
            self._decide(StartupError(f"{who} before it was ready{_why(child)}"))
        elif _coordinates(child) and self._begun and self._may_start_again(who, status):
            self._epoch += 1
            self._start_coordinator(self._coordinator, SHOAL_EPOCH=self._epoch)
        elif status != 0:
            self._decide(self._lost(f"{who}{_why(child)}"))
        elif self._left is None:  # when a job is over, all of its nodes end so
            self._left = (f"{who}{_why(child)}", time.monotonic() + GRACE_SECONDS)

    def _lost(self, who: str) -> ShoalError:
        if not self._begun:
            return StartupError(f"{who}; the job had not begun, so nothing is lost")
        needed = "the job cannot go on without any of its servers and its coordinator"
        return JobError(f"{who}; {needed}: {self._way_on()}")

    def _check_forming(self, status: Status) -> None:
        """Whether workers that are ready to begin wait for one that will never come."""
        waiting = [f"worker {node_number(member.name)}" for member in status.members if member.state == DECLARED]
        if self._verdict is None and status.phase == "forming" and self._ended_well and waiting:
            self._decide(
                StartupError(
                    f"{self._ended_well[0]} before the job began, and {', '.join(waiting)} waits for it in vain: "
                    f"each of the {self._plan.workers} workers must come to ps.optimizer(...); or start fewer workers"
                )
            )

    def _check_nodes(self) -> None:
        """Whether each node that should be ready is, and whether nodes that end do so together."""
        if self._verdict is not None:
            return
        now = time.monotonic()
        late = [child for child, by in self._ready_by.items() if now >= by]
        for child in [child for child in late if self._has_replicas(child)]:
            late.remove(child)
            del self._ready_by[child]
            child.signal(signal.SIGKILL)
        if late:
            names = ", ".join(f"{child.name} (pid {child.pid}){_why(child)}" for child in late)
            limit = f"start_ms={self._plan.limits.start_ms}"
            why = f"not ready after {limit}: {names}; on a slow machine raise SHOAL_START_MS"
            taking_over = any(map(self._takes_over, late))
            self._decide(JobError(f"{why}. {self._way_on()}") if taking_over else StartupError(why))
        elif self._left is not None and self._nodes and now >= self._left[1]:
            self._decide(self._lost(self._left[0]))

    def _decide(self, status: int | ShoalError, settle: float = 0.0) -> None:
        """The job ends so, unless a worker's failure turns out to follow from a node's."""
        if self._verdict is None or (isinstance(status, ShoalError) and isinstance(self._verdict.status, int)):
            self._verdict = _Verdict(time.monotonic() + settle, status)

    # --- ending -------------------------------------------------------------------------------------

    def _end_all(self) -> None:
        """Workers first, so that none of them complains of a server that is gone."""
        try:
            self._end(self._workers)
            self._end(self._nodes)
        finally:
            for child in (*self._workers, *self._nodes):
                child.signal(signal.SIGKILL)

    def _end(self, children: dict[Child, int] | list[Child]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in children:
                child.signal(number)
                child.signal(signal.SIGCONT)  # who is stopped would not hear of it
            until = time.monotonic() + GRACE_SECONDS
            while children and (left := until - time.monotonic()) > 0:
                try:
                    event = self._events.get(timeout=left)
                except Empty:
                    break
                match event:
                    case Line(child, text):
                        self._line(child, text)
                    case Exited(child, _) if child in self._workers:
                        del self._workers[child]
                    case Exited(child, _):
                        self._nodes.remove(child)
                    case _Interrupted():  # asked twice: no more grace
                        until = 0.0
                    case Seen() | Silent():
                        pass
                    case _:
                        assert_never(event)

    def _say(self, text: str) -> None:
        self._on_line(LAUNCHER, text)


@contextmanager
def _signals(events: SimpleQueue[_Event]) -> Iterator[None]:
    """Turns Ctrl-C and its kin into events. Off the main thread, where Python allows it to nobody, does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda number, _frame: events.put(_Interrupted(number)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _coordinates(child: Child) -> bool:
    """Whether it is a coordinator, one that stands by among them."""
    return child.name.partition(" ")[0] == COORDINATOR


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal without a name
        return f"was killed by signal {-status}"


def _why(child: Child) -> str:
    """What the child itself said last, to be put behind its name."""
    lines = [line for line in child.last_lines if not line.startswith((READY, BEGUN))]
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if errors:
        return f": {errors[-1]}"
    return f", its last lines: {' | '.join(lines)}" if lines else ""
