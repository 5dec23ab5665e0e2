"""Servers that run on a fleet's members: to their launcher they are children like all others.

What is promised: a Borrowed tells each line and exactly one end, also when its member is gone; then its last
line names the member and what became of it, and it counts as killed. All of them end when `borrowing` is left,
or its process is killed: the members see to it.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from signal import SIGKILL, Signals

from shoal.config import Job
from shoal.core import lending as e
from shoal.core import machine as k
from shoal.core.borrower import Borrower
from shoal.core.lender import OWN_VARIABLES
from shoal.errors import ShoalError, StartupError
from shoal.launch.child import Child, Exited, Line
from shoal.launch.fleet import fleet_job, member_name
from shoal.launch.words import ERROR
from shoal.runtime.loop_thread import LoopThread
from shoal.runtime.node import Node
from shoal.wire.fleet import LAUNCHER

Emit = Callable[[Line | Exited], None]


class Borrowed(Child):
    """A server on a fleet's member."""

    def __init__(self, name: str, emit: Emit, pid: int, send: Callable[[Signals], None]) -> None:
        super().__init__(name, emit)
        self._pid = pid
        self._send = send

    @property
    def pid(self) -> int:
        return self._pid

    def signal(self, number: Signals) -> None:
        self._send(number)


class BorrowingNode(Node):
    """Drives a Borrower. All methods run on its event loop."""

    def __init__(self, job: Job, members: Sequence[str]) -> None:
        super().__init__(_name(), job)
        self._borrower = Borrower([member_name(address) for address in members], job.limits)
        self._numbers = 0
        self._waiting: dict[int, tuple[str, Emit, asyncio.Future[Borrowed]]] = {}
        self._running: dict[int, Borrowed] = {}

    def machine(self) -> Borrower:
        return self._borrower

    async def borrow(self, job: str, name: str, environment: Mapping[str, str], emit: Emit) -> Borrowed:
        """A server of this job on the next member that has a place; StartupError if none has."""
        self._numbers += 1
        number, loop = self._numbers, asyncio.get_running_loop()
        answer: asyncio.Future[Borrowed] = loop.create_future()
        self._waiting[number] = (name, emit, answer)
        self.event(e.Borrow(number, job, name, environment))
        return await answer  # which the machine gives within start_ms

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case e.Obtained(number, member, pid):
                self._obtained(number, member, pid)
            case e.Unobtainable(number, reason):
                name, _, answer = self._waiting.pop(number)
                answer.set_exception(StartupError(_no_place(name, reason)))
            case e.Heard(number, text):
                self._running[number].say([text])
            case e.Over(number, status, reason):
                child = self._running.pop(number)
                child.say([f"{ERROR}{reason}"] if reason else [])
                child.end(status)
            case e.Cut(name, reason):
                if name in self.peers:
                    self.peers[name].connection.cut(reason)
            case _:
                raise TypeError(f"a launcher cannot perform {effect!r}")

    def unreachable(self, name: str, error: ShoalError) -> None:
        """A member that was lost has not come back: it is asked for nothing."""

    def halt(self, reason: str) -> None:
        """A defect: what is borrowed is over, and nobody waits for an answer."""
        super().halt(reason)
        for child in self._running.values():
            child.say([f"{ERROR}{reason}"])
            child.end(-SIGKILL)
        self._running.clear()
        for _, _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(StartupError(reason))

    def _obtained(self, number: int, member: str, pid: int) -> None:
        name, emit, answer = self._waiting.pop(number)
        loop = asyncio.get_running_loop()

        def send(signal: Signals) -> None:
            loop.call_soon_threadsafe(self.event, e.Forward(number, signal))

        self._running[number] = Borrowed(name, emit, pid, send)
        self._running[number].say([f"runs on {member} (pid {pid})"])
        answer.set_result(self._running[number])


class Fleet:
    """The members that a launcher borrows from, for one job. Its methods block, each with a deadline."""

    def __init__(self, thread: LoopThread, node: BorrowingNode, job: str) -> None:
        self._thread, self._node, self._job = thread, node, job

    def start(self, name: str, environment: Mapping[str, str], emit: Emit) -> Child:
        """A server with these variables; of them only those of Shoal's that are no machine's own go along.

        emit is called from a thread of the fleet's. Raises StartupError when no member lends a place.
        """
        lent = {key: value for key, value in environment.items() if key.startswith("SHOAL_")}
        for key in OWN_VARIABLES & lent.keys():
            del lent[key]
        return self._thread.call(self._node.borrow(self._job, name, lent, emit))


@contextmanager
def borrowing(job: str, members: Sequence[str], environment: Mapping[str, str]) -> Iterator[Fleet | None]:
    """Connected to these members ("tcp://host:port") inside the `with` block; with none of them there is no fleet.

    The fleet's token and TLS are read from `environment`. Raises StartupError when a member is not there by
    limits.connect_ms, RefusedError when it says no, ConfigurationError for settings that cannot be.
    """
    if not members:
        yield None
        return
    fleet = fleet_job(environment)
    thread = LoopThread("fleet")
    try:
        node = thread.call(_connected(fleet, members))
        try:
            yield Fleet(thread, node, job)
        finally:
            thread.call(node.close())
    finally:
        thread.stop()


async def _connected(fleet: Job, members: Sequence[str]) -> BorrowingNode:
    node = BorrowingNode(fleet, members)
    try:
        await asyncio.gather(*(node.dial(member_name(address), address) for address in members))
    except BaseException:
        await node.close()
        raise
    return node


def _name() -> str:
    """Of this launcher: for people to find it, and for nobody to guess."""
    host = re.sub("[^a-z0-9-]", "-", socket.gethostname().lower())[:40]
    return f"{LAUNCHER}{host}-{os.getpid()}-{secrets.token_hex(8)}"


def _no_place(name: str, reason: str) -> str:
    return (
        f"no member of the fleet lends a place for {name} ({reason}); wait for another job to end, add members "
        f"to --fleet, or start with fewer --servers"
    )
