"""The processes of a benchmark: whatever happens, none of them outlives it.

They are children of the launcher's own kind, so the kernel ends them should the benchmark be killed;
otherwise they are asked to end, and killed by process id when they do not. SIGTERM and SIGHUP end the
benchmark as Ctrl-C does, so that it tidies up behind itself.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType

from shoal.config import Limits
from shoal.errors import JobError, StartupError
from shoal.launch.child import Child, ChildProcess, Exited, Line
from shoal.launch.crew import COORDINATOR_PROGRAM, SERVER_PROGRAM
from shoal.launch.plan import Plan
from shoal.launch.words import READY
from shoal.vocabulary import COORDINATOR

GRACE_SECONDS = 3.0  # between asking and killing
SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Fleet:
    """Starts processes by name, and ends all of them at the end of the `with` block.

    job, workers, servers: what every process finds in SHOAL_* variables; its token is a fresh secret.
    host: where the coordinator and the servers listen.
    """

    def __init__(self, job: str, workers: int, servers: int, host: str = "127.0.0.1") -> None:
        limits = Limits.from_environment()
        self.plan = Plan(("-m", "shoal"), workers, servers, host, 0, 0, None, job, secrets.token_urlsafe(), limits)
        self.plan.check()
        self._events: SimpleQueue[Line | Exited] = SimpleQueue()
        self._running: dict[str, Child] = {}
        self._ended: dict[str, Child] = {}
        self._addresses: dict[Child, str] = {}
        self._stack = ExitStack()

    def start(self, name: str, arguments: Sequence[str], prefix: Sequence[str] = (), **facts: object) -> None:
        """Start `PREFIX python ARGUMENTS` under this name, facts in its environment.

        prefix: a command that becomes the one behind it, by its full path (/sbin/ip netns exec NAME).
        """
        environment = self.plan.environment(os.environ, facts)
        self._running[name] = ChildProcess(name, (*prefix, sys.executable, *arguments), environment, self._events.put)

    def start_job(self, suffix: str = "", prefix: Sequence[str] = (), **facts: object) -> str:
        """Start a coordinator and the servers, and wait until they are ready; returns the coordinator's address.

        prefix, facts: as for start; those of a job with replicas are replicated(replicas). Raises StartupError when
        one is not ready in time.
        """
        name = COORDINATOR + suffix
        self.start(name, (*COORDINATOR_PROGRAM, "--listen", self.plan.listen), prefix, **facts)
        address = self.ready(name)
        names = self.servers(suffix, int(str(facts.get("SHOAL_REPLICAS", 1))))
        for index, name in enumerate(names):
            own = {"SHOAL_SERVER_INDEX": index, "SHOAL_COORDINATOR": address, "SHOAL_LISTEN": self.plan.listen}
            self.start(name, SERVER_PROGRAM, prefix, **facts, **own)
        for name in names:
            self.ready(name)
        return address

    def ready(self, name: str) -> str:
        """Wait until a process has said that it is ready, and what it said (StartupError if it does not)."""
        return self._address(self._running[name])

    def replicated(self, replicas: int) -> dict[str, str]:
        """The facts of all processes of a job with so many replicas of each server's part, as the launcher has them."""
        environment = replace(self.plan, replicas=replicas).environment(os.environ, {})
        return {name: environment[name] for name in ("SHOAL_REPLICAS", "SHOAL_SERVER_THREADS")}

    def servers(self, suffix: str = "", replicas: int = 1) -> list[str]:
        """The names of the servers that start_job(suffix) starts, with so many replicas of each one's part."""
        return [f"server {index}{suffix}" for index in range(self.plan.servers * replicas)]

    def pid(self, name: str) -> int:
        """The process id of one that runs."""
        return self._running[name].pid

    def pause(self, names: Sequence[str]) -> None:
        """Stop these processes where they are: they use no processor until resume(names)."""
        for name in names:
            self._running[name].signal(signal.SIGSTOP)

    def resume(self, names: Sequence[str]) -> None:
        """Let them go on."""
        for name in names:
            if name in self._running:
                self._running[name].signal(signal.SIGCONT)

    def end(self, names: Sequence[str], grace_s: float = GRACE_SECONDS) -> None:
        """End these processes: asked first, then killed."""
        self._end({name: child for name, child in self._running.items() if name in names}, grace_s)

    def end_job(self, suffix: str = "") -> None:
        """End the coordinator and the servers that start_job(suffix) started, without replicas."""
        self.end([COORDINATOR + suffix, *self.servers(suffix)])

    def check(self) -> None:
        """Raises JobError when a process has ended that nobody told to."""
        self._drain()
        for name, child in self._ended.items():
            raise JobError(f"{name} (pid {child.pid}) ended{self.why(name)}")

    def why(self, name: str) -> str:
        """What a process said last."""
        time.sleep(0.1)  # its output may still be on the way
        self._drain()
        child = self._running.get(name) or self._ended.get(name)
        words = list(child.last_lines) if child is not None else []
        return f", its last lines: {' | '.join(words)}" if words else ", without a word"

    def _address(self, child: Child) -> str:
        until = time.monotonic() + self.plan.limits.start_ms / 1000
        while child not in self._addresses:
            self.check()
            if time.monotonic() >= until:
                raise StartupError(f"{child.name} was not ready after start_ms={self.plan.limits.start_ms}")
            self._drain(wait_s=0.05)
        return self._addresses[child]

    def _drain(self, wait_s: float = 0.0) -> None:
        """Take note of what was said and who ended; waits up to wait_s for the first event."""
        while True:
            try:
                event = self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait()
            except Empty:
                return
            wait_s = 0.0
            match event:
                case Line(child, text) if text.startswith(READY):
                    self._addresses[child] = text.removeprefix(READY).strip()
                case Exited(child) if self._running.get(child.name) is child:
                    self._ended[child.name] = self._running.pop(child.name)

    def _end(self, children: dict[str, Child], grace_s: float = GRACE_SECONDS) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in children.values():
                child.signal(number)
                child.signal(signal.SIGCONT)  # a paused one hears nothing else
            until = time.monotonic() + grace_s
            while children.keys() & self._running.keys() and time.monotonic() < until:
                self._drain(wait_s=0.05)
        for name in children:
            self._ended.pop(name, None)

    def __enter__(self) -> Fleet:
        self._stack.enter_context(_signals_end())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(dict(self._running))
        finally:
            for child in self._running.values():
                child.signal(signal.SIGKILL)
            self._stack.close()


@contextmanager
def _signals_end() -> Iterator[None]:
    """Turns SIGNALS into SystemExit. Off the main thread, where Python allows it to nobody, does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)
