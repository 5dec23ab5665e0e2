"""A process of a job: each line it writes and its end are told, in that order.

A ChildProcess, one of this machine, leads a process group of its own, and what it started ends with it: all of
the group has been killed once Exited is out. Lines are cut at LINE_BYTES_MAX, so one that is never ended costs
no memory. (One that runs on a fleet's member: borrowed.py.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 5.0  # between asking a process to end and killing it
LINE_BYTES_MAX = 64 << 10
LAST_LINES = 5
DRAIN_SECONDS = 1.0  # for output still in the pipe after the end; a stray that holds it open is not waited for

_LEASH = str(Path(__file__).with_name("leash.py"))


@dataclass(frozen=True)
class Line:
    """One line of output (stdout and stderr come as one stream), without its end."""

    child: Child
    text: str


@dataclass(frozen=True)
class Exited:
    """The child has ended, and its group been killed. status: exit status, or minus the number of a signal."""

    child: Child
    status: int


class Child(ABC):
    """A running command, here or on another machine.

    emit is called from threads of the child's own, and must be quick (SimpleQueue.put).
    """

    def __init__(self, name: str, emit: Callable[[Line | Exited], None]) -> None:
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._emit = emit

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    @property
    @abstractmethod
    def pid(self) -> int:
        """On the machine where it runs."""

    @abstractmethod
    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and all of its group; nothing happens when they have ended."""

    def say(self, lines: Sequence[str]) -> None:
        """The child has written these lines."""
        for text in lines:
            self.last_lines.append(text)
            self._emit(Line(self, text))

    def end(self, status: int) -> None:
        """The child is over, and there will be no more lines."""
        self._emit(Exited(self, status))


class ChildProcess(Child):
    """A child of this process. Start children from a thread that outlives them: its end is theirs."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        emit: Callable[[Line | Exited], None],
        descriptors: Collection[int] = (),
    ) -> None:
        """descriptors: that it has open, too, under the same numbers."""
        super().__init__(name, emit)
        self._lock = threading.Lock()
        self._reaped = False
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _LEASH, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            bufsize=0,
            start_new_session=True,
            pass_fds=tuple(descriptors),
        )
        self._reader = threading.Thread(target=self._read, name=f"{name} output", daemon=True)
        self._reader.start()
        threading.Thread(target=self._reap, name=f"{name} end", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        with self._lock:
            if not self._reaped:
                os.killpg(self.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        lines = LineSplitter()
        with self._process.stdout as stream:
            while chunk := stream.read(LINE_BYTES_MAX):
                self.say(lines.feed(chunk))
        self.say(lines.end())

    def _reap(self) -> None:
        # The dead child keeps its process id until it is reaped, so the group killed here is surely its own.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            os.killpg(self.pid, signal.SIGKILL)
            status = self._process.wait()
            self._reaped = True
        self._reader.join(DRAIN_SECONDS)
        self.end(status)


class LineSplitter:
    """Turns chunks of bytes into lines of text; of a line that was drawn over with \\r, the last drawing."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that this chunk completes."""
        *complete, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest = self._rest[self._rest.rfind(b"\r", 0, -1) + 1 :]
        if len(self._rest) > LINE_BYTES_MAX:
            complete.append(self._rest)
            self._rest = b""
        return [_text(line) for line in complete]

    def end(self) -> list[str]:
        """What is left of an unfinished last line."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
