"""How a benchmark tells its processes what to do: orders and answers as JSON lines on a Unix socket.

A process that has no order waits in recv and costs no CPU. When its benchmark is gone, it ends. A
process that dies is noticed at once, and its last words are in the error.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import msgspec

from shoal.errors import DeadlineError, JobError

READ_BYTES = 1 << 20
MEANWHILE_SECONDS = 0.1
ACCEPT_SECONDS = 0.1  # between looks at whether everyone is still alive

Answer = TypeVar("Answer")
Order = TypeVar("Order")


class Hello(msgspec.Struct, frozen=True):
    """A process's first line."""

    name: str


class Conductor:
    """The benchmark's end: gives orders and collects the answers, each wait with a deadline.

    alive: raises when a process that should run has ended; called while waiting for someone.
    why: what a process said last, to be put behind its name in an error.
    """

    def __init__(self, path: Path, alive: Callable[[], None], why: Callable[[str], str]) -> None:
        self._alive, self._why = alive, why
        self._lines: dict[str, _Lines] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(ACCEPT_SECONDS)

    def gather(self, names: Sequence[str], deadline_s: float) -> None:
        """Wait until all of these processes are there (DeadlineError naming those that are not)."""
        until = time.monotonic() + deadline_s
        while missing := [name for name in names if name not in self._lines]:
            self._alive()
            if time.monotonic() >= until:
                raise DeadlineError(f"not there after {deadline_s:g} s: {', '.join(missing)}")
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            lines = _Lines(connection)
            connection.settimeout(deadline_s)
            self._lines[msgspec.json.decode(lines.wait(), type=Hello).name] = lines

    def ask(
        self,
        orders: Mapping[str, msgspec.Struct],
        kind: type[Answer],
        deadline_s: float,
        what: str,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[str, Answer]:
        """Give each named process its order; returns their answers.

        meanwhile: called some ten times a second until they are there. Raises JobError when one of
        them dies, DeadlineError when one does not answer in time.
        """
        for name, order in orders.items():
            self._lines[name].connection.sendall(msgspec.json.encode(order) + b"\n")
        answers: dict[str, Answer] = {}
        until = time.monotonic() + deadline_s
        with selectors.DefaultSelector() as selector:
            for name in orders:
                selector.register(self._lines[name].connection, selectors.EVENT_READ, name)
            while waiting := [name for name in orders if name not in answers]:
                left = until - time.monotonic()
                if left <= 0:
                    raise DeadlineError(f"{', '.join(waiting)} did not finish {what} within {deadline_s:g} s")
                for key, _ in selector.select(left if meanwhile is None else MEANWHILE_SECONDS):
                    line = self._read(key.data, what)
                    if line is not None:
                        answers[key.data] = msgspec.json.decode(line, type=kind)
                if meanwhile is not None:
                    meanwhile()
        return {name: answers[name] for name in orders}

    def close(self) -> None:
        """Let everyone go: a process whose line is closed ends by itself."""
        for lines in self._lines.values():
            lines.connection.close()
        self._listener.close()

    def _read(self, name: str, what: str) -> bytes | None:
        try:
            return self._lines[name].read()
        except OSError:
            raise JobError(f"{name} ended during {what}{self._why(name)}") from None

    def __enter__(self) -> Conductor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Follower(Generic[Order]):
    """A process's end: `for order in follower: ...; follower.answer(...)`. Ends with the benchmark."""

    def __init__(self, path: str, name: str, kind: type[Order]) -> None:
        self._kind = kind
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        self.answer(Hello(name))

    def answer(self, value: msgspec.Struct) -> None:
        """Answer the order under way."""
        self._connection.sendall(msgspec.json.encode(value) + b"\n")

    def __iter__(self) -> Iterator[Order]:
        lines = _Lines(self._connection)
        while True:
            try:
                line = lines.wait()
            except OSError:
                return  # the benchmark is over
            yield msgspec.json.decode(line, type=self._kind)


class _Lines:
    """Whole lines off a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._arrived = b""

    def read(self) -> bytes | None:
        """Receive once; a line if that completed one. OSError when the other end is gone."""
        data = self.connection.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the other end closed")
        self._arrived += data
        line, found, rest = self._arrived.partition(b"\n")
        if not found:
            return None
        self._arrived = rest
        return line

    def wait(self) -> bytes:
        """The next line."""
        while (line := self.read()) is None:
            pass
        return line
