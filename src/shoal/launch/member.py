"""A fleet's member: `shoal serve`, a process that lends places for servers to the jobs that ask for them.

What is promised: every server it started has ended when it ends, also when it is killed, and each ends with
the launcher that borrowed it. A server runs on this machine's own terms (where it listens, its certificates,
its Python); the launcher says which job it belongs to. Only `python -m shoal.runtime.server` is ever started.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping
from signal import Signals

from shoal.config import Job
from shoal.core import lending as e
from shoal.core import machine as k
from shoal.core.lender import GRACE_MS, Lender
from shoal.errors import ConfigurationError
from shoal.launch.child import Child, ChildProcess, Exited, Line
from shoal.launch.fleet import TOKEN_VARIABLE, fleet_job
from shoal.runtime import process
from shoal.runtime.node import Node
from shoal.transport.tcp import SCHEME, host_and_port
from shoal.wire import messages as m
from shoal.wire.fleet import FLEET, LAUNCHER

PROGRAM = (sys.executable, "-m", "shoal.runtime.server")
WATCHERS_MAX = 64  # connections at once, beside one for each place
KILLED_SECONDS = 2.0  # for what is killed to be gone
ENDING_SECONDS = 0.02  # between looks whether all have ended


class FleetMember(Node):
    """Drives a Lender and the processes that it lends."""

    names = re.compile(rf"(?:{LAUNCHER}[a-z0-9-]{{1,80}})?")  # of launchers; who only looks has none

    def __init__(self, job: Job, host: str, places: int, places_per_job: int) -> None:
        """host: where servers listen."""
        super().__init__("fleet member", job)
        self._lender = Lender(places, places_per_job, job.limits, os.getpid())
        self._host = f"[{host}]" if ":" in host else host
        self._peers_max = places + WATCHERS_MAX
        self._children: dict[int, ChildProcess] = {}  # by ticket
        self._tickets: dict[Child, int] = {}

    def machine(self) -> Lender:
        return self._lender

    def foreign(self, hello: m.Hello) -> str:
        if hello.job != FLEET:
            return f"this is a fleet's member and no node of job {hello.job[:60]!r}: check the address"
        if not self.has_token(hello):
            return f"the token does not match that of the fleet: set {TOKEN_VARIABLE} to the fleet's own"
        if len(self.peers) >= self._peers_max:
            return f"it has {self._peers_max} launchers and visitors already: try again later"
        return ""

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case e.Spawn(ticket, name, environment):
                self._spawn(ticket, name, environment)
            case e.Kill(ticket, number) if ticket in self._children:
                self._children[ticket].signal(Signals(number))
            case e.Kill():
                pass  # it ended meanwhile
            case e.Cut(name, reason):
                if name in self.peers:
                    self.peers[name].connection.cut(reason)
            case _:
                raise TypeError(f"a fleet's member cannot perform {effect!r}")

    async def close(self) -> None:
        """End what is lent, then everything else."""
        self.event(e.Retire("it was told to end"))
        until = time.monotonic() + GRACE_MS / 1000 + KILLED_SECONDS
        while self._children and time.monotonic() < until:
            await asyncio.sleep(ENDING_SECONDS)
        await super().close()

    def _spawn(self, ticket: int, name: str, lent: Mapping[str, str]) -> None:
        loop = asyncio.get_running_loop()

        def tell(event: Line | Exited) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._take_event, event)

        try:
            child = ChildProcess(name, PROGRAM, self._environment(lent), tell)
        except OSError as error:  # too many processes, too little memory
            self.event(e.Spawned(ticket, 0, f"it could not start a process ({error.strerror or error})"))
            return
        self._children[ticket] = child
        self._tickets[child] = ticket
        self.event(e.Spawned(ticket, child.pid))

    def _take_event(self, event: Line | Exited) -> None:
        match event:
            case Line(child, text):
                self.event(e.Wrote(self._tickets[child], text))
            case Exited(child, status):
                ticket = self._tickets.pop(child)
                del self._children[ticket]
                self.event(e.Finished(ticket, status))

    def _environment(self, lent: Mapping[str, str]) -> dict[str, str]:
        """Of a server: this machine's own, but for what makes it a server of a job."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        tls = {} if self.job.tls is None else self.job.tls.environment()
        here = {"SHOAL_LISTEN": f"{SCHEME}://{self._host}:0", "PYTHONUNBUFFERED": "1"}
        return {**own, **lent, **_threads(lent), **tls, **here}


def serve(address: str, places: int, places_per_job: int | None = None) -> int:
    """Lend places at `address` ("tcp://host:port") until told to end; returns the exit status.

    places_per_job: None: all of them. The token is read from SHOAL_FLEET_TOKEN, TLS from SHOAL_TLS_*. Raises
    ConfigurationError for what cannot work.
    """
    host, _ = host_and_port(address)
    each = places if places_per_job is None else places_per_job
    if not 1 <= each <= places:
        raise ConfigurationError(f"--places {places} must be 1 or more, --places-per-job {each} from 1 to that")
    if host in ("0.0.0.0", "::"):
        raise ConfigurationError(
            f"{address} is every address of this machine, and its servers must name one that workers reach: "
            f"give that one in --listen"
        )
    job = fleet_job(places=places)
    process.check_exposure(address, job, TOKEN_VARIABLE)

    async def start() -> Node:
        member = FleetMember(job, host, places, each)
        found = await member.listen(address)
        member.log(f"lends {places} places; to borrow them: shoal run --fleet {found.partition('://')[2]} SCRIPT")
        print(process.READY, found, flush=True)
        return member

    return process.run(start)


def _threads(lent: Mapping[str, str]) -> dict[str, str]:
    """No more threads than this machine has cores, however many the launcher's has."""
    wanted, cores = lent.get("SHOAL_SERVER_THREADS", ""), len(os.sched_getaffinity(0))
    return {"SHOAL_SERVER_THREADS": str(cores)} if wanted.isdecimal() and int(wanted) > cores else {}
