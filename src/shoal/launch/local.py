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
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import assert_never

from shoal.config import Limits
from shoal.errors import StartupError
from shoal.launch.borrowed import Fleet, borrowing
from shoal.launch.child import GRACE_SECONDS, Child, Exited, Line
from shoal.launch.coordinators import Coordinators
from shoal.launch.crew import Crew, coordinates
from shoal.launch.jobs import JobRecord, published
from shoal.launch.outcome import Outcome, WayOn
from shoal.launch.plan import Plan, prepared
from shoal.launch.printer import Printer
from shoal.launch.pulse import Seen, Silent, pulse
from shoal.launch.restarts import Restarts
from shoal.launch.servers import Servers
from shoal.launch.words import BEGUN, READY, ending, why
from shoal.launch.workers import Workers
from shoal.wire.messages import Status

LAUNCHER = "shoal"  # the source of lines that the launcher itself has to say

OnLine = Callable[[str, str], None]  # (source, text); source is "worker 0", "server 1", "coordinator" or "shoal"
OnStatus = Callable[[Status], None]


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
    with borrowing(plan.job, plan.fleet, environment) as fleet:
        return _Launch(plan, environment, fleet, Printer() if on_line is None else on_line, on_status, way_on).run()


@dataclass(frozen=True)
class _Interrupted:
    number: int


_Event = Line | Exited | _Interrupted | Seen | Silent


class _Launch:
    """One run of a plan: reads one queue of events, on one thread, and acts on each."""

    def __init__(
        self,
        plan: Plan,
        environment: Mapping[str, str],
        fleet: Fleet | None,
        on_line: OnLine,
        on_status: OnStatus | None,
        way_on: WayOn,
    ) -> None:
        self._plan = plan
        self._on_line = on_line
        self._on_status = on_status
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._publishing = ExitStack()
        self._left: tuple[str, float] | None = None  # the first node that ended with 0; the others follow by then
        self._outcome = Outcome(way_on)
        self._crew = Crew(plan, environment, self._events.put, fleet)
        shared = (self._crew, Restarts(plan.max_restarts), self._outcome, self._say)
        self._coordinators = Coordinators(bool(plan.registry), *shared)
        self._servers = Servers(plan.replicas, *shared)
        self._workers = Workers(plan, *shared)

    def run(self) -> int:
        with ExitStack() as stack:
            stack.enter_context(_signals(self._events))
            stack.callback(self._crew.close)
            stack.callback(self._end_all)
            self._crew.start_coordinator(self._plan.listen)
            self._attend(until=lambda: bool(self._crew.leads_at))
            if self._outcome.open:
                stack.callback(self._publishing.close)
                self._publish()
                for _ in range(self._plan.standbys):
                    self._crew.start_standby()
                for _ in range(self._plan.server_processes):
                    self._crew.start_server()
                self._workers.start()
                stack.enter_context(pulse(lambda: self._record, self._plan.limits.lease_ms, self._events.put))
                self._attend(until=lambda: not self._crew.workers)
            return self._outcome.status()

    @property
    def _record(self) -> JobRecord:
        plan = self._plan
        return JobRecord(plan.job, self._crew.leads_at, plan.token, os.getpid(), plan.tls, plan.registry)

    def _publish(self) -> None:
        """Let others on this machine find the job, where it is now."""
        self._publishing.close()
        self._publishing.enter_context(published(self._record))

    # --- attending ----------------------------------------------------------------------------------

    def _attend(self, until: Callable[[], bool]) -> None:
        """Acts on events until the condition holds, or there is a verdict and it is due."""
        while not self._outcome.open or not until():
            self._check_nodes()
            left = self._seconds_left()
            if not self._outcome.open and left == 0.0:
                return
            try:
                event = self._events.get(timeout=left)
            except Empty:
                continue
            self._act(event)

    def _seconds_left(self) -> float | None:
        """Until the verdict is due or, while there is none, a node is late at something; None: nothing can be."""
        due = [*self._crew.ready_by.values()] if self._outcome.due is None else [self._outcome.due]
        if self._left is not None and self._crew.nodes and self._outcome.open:
            due.append(self._left[1])
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _act(self, event: _Event) -> None:
        match event:
            case Line(child, text):
                self._line(child, text)
            case Exited(child, status) if child in self._crew.workers:
                self._workers.ended(child, status)
            case Exited(child, status):
                self._crew.nodes.remove(child)
                self._node_ended(child, status)
            case _Interrupted(number):
                self._outcome.interrupt(number)
            case Seen(job_status):
                self._servers.check(job_status)
                self._workers.check(job_status)
                if self._on_status is not None:
                    self._on_status(job_status)
            case Silent(milliseconds):
                self._coordinators.silent(milliseconds)
            case _:
                assert_never(event)

    def _line(self, child: Child, text: str) -> None:
        if coordinates(child) and text.startswith(READY):
            self._crew.ready_by.pop(child, None)
            if self._coordinators.leads(child, text.removeprefix(READY).strip()):
                self._publish()
        elif child in self._crew.ready_by and text.startswith(READY):
            del self._crew.ready_by[child]
        elif text == BEGUN and coordinates(child):
            self._outcome.begun = True
        else:
            self._on_line(child.name, text)

    def _node_ended(self, child: Child, status: int) -> None:
        kind = self._coordinators if coordinates(child) else self._servers
        if kind.ended(child, status):
            return
        was_late = self._crew.ready_by.pop(child, None) is not None
        who = f"{child} {ending(status)}"
        if was_late and not self._coordinators.takes_over(child):
            self._outcome.decide(StartupError(f"{who} before it was ready{why(child)}"))
        elif status != 0:
            self._outcome.lose(f"{who}{why(child)}")
        elif self._left is None:  # when a job is over, all of its nodes end so
            self._left = (f"{who}{why(child)}", time.monotonic() + GRACE_SECONDS)

    def _check_nodes(self) -> None:
        """Whether each node that should be ready is, and whether nodes that end do so together."""
        if not self._outcome.open:
            return
        now = time.monotonic()
        late = [child for child, by in self._crew.ready_by.items() if now >= by]
        for child in [child for child in late if self._servers.has_replicas(child)]:
            late.remove(child)
            del self._crew.ready_by[child]
            child.signal(signal.SIGKILL)
        if late:
            names = ", ".join(f"{child}{why(child)}" for child in late)
            limit = f"start_ms={self._plan.limits.start_ms}"
            self._outcome.give_up(
                f"not ready after {limit}: {names}; on a slow machine raise SHOAL_START_MS",
                under_way=any(map(self._coordinators.takes_over, late)),
            )
        elif self._left is not None and self._crew.nodes and now >= self._left[1]:
            self._outcome.lose(self._left[0])

    # --- ending -------------------------------------------------------------------------------------

    def _end_all(self) -> None:
        """Workers first, so that none of them complains of a server that is gone."""
        try:
            self._end(self._crew.workers)
            self._end(self._crew.nodes)
        finally:
            for child in (*self._crew.workers, *self._crew.nodes):
                child.signal(signal.SIGKILL)

    def _end(self, children: Collection[Child]) -> None:
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
                    case Exited(child, _) if child in self._crew.workers:
                        del self._crew.workers[child]
                    case Exited(child, _):
                        self._crew.nodes.remove(child)
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
