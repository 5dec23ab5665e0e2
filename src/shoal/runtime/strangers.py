"""Connections of whom nobody knows yet who they are: few at once, none for long, and a line for each that is refused.

A stranger is known once its handshake is over (TLS's and the job's). Of too many the one that has waited
longest is cut: whoever belongs here says so at once. What is said about them is bounded, too, so that a
flood of strangers fills no disk.
"""

from __future__ import annotations

from collections.abc import Callable

from shoal.config import Job
from shoal.transport import Connection

LEAVING_MS = 3_000  # a refused one takes its last words in this time, longer than a transport lingers
LINES_MAX = 20  # about strangers, in LINES_MS; further ones are counted
LINES_MS = 1_000
LINE_LENGTH_MAX = 500


class Strangers:
    """Those of one node. now: of the node's clock, in milliseconds."""

    def __init__(self, job: Job, log: Callable[[str], None]) -> None:
        self._log = log
        self._wait_ms = job.limits.connect_ms
        # All of the job may come at once, and that many more: they do not push one another out.
        self.room = job.limits.strangers_max + job.workers * (1 + job.limits.streams_max) + job.servers
        self._waiting: dict[Connection, int] = {}  # and since when, the oldest first
        self._leaving: dict[Connection, int] = {}  # refused or gone; some still hold a socket
        self._lines, self._lines_since, self._unsaid = 0, 0, 0

    def __len__(self) -> int:
        return len(self._waiting)

    def arrived(self, connection: Connection, now: int) -> None:
        """One more; if that is one too many, the oldest is cut."""
        if len(self._waiting) + len(self._leaving) >= self.room:
            too_many = (
                f"{self.room} connections wait without a handshake, and this is the oldest of them; "
                f"SHOAL_STRANGERS_MAX allows more"
            )
            self._cut_first(self._leaving or self._waiting, too_many)
        self._waiting[connection] = now

    def known(self, connection: Connection) -> None:
        """It has said who it is, and is welcome."""
        self._waiting.pop(connection, None)

    def left(self, connection: Connection, now: int) -> None:
        """It is refused, or has gone."""
        if self._waiting.pop(connection, None) is not None:
            self._leaving[connection] = now

    def tick(self, now: int) -> None:
        """Cuts those whose time is over."""
        while self._waiting and now - next(iter(self._waiting.values())) >= self._wait_ms:
            self._cut_first(self._waiting, f"no handshake in connect_ms={self._wait_ms}")
        while self._leaving and now - next(iter(self._leaving.values())) >= LEAVING_MS:
            self._cut_first(self._leaving, "")
        if self._unsaid and now - self._lines_since >= LINES_MS:
            self._log(f"and {self._unsaid} more connections were refused within {LINES_MS} ms")
            self._unsaid = 0

    def say(self, text: str, now: int) -> None:
        """Log what one of them did."""
        if now - self._lines_since >= LINES_MS and not self._unsaid:
            self._lines, self._lines_since = 0, now
        self._lines += 1
        if self._lines <= LINES_MAX:
            self._log(_one_line(text))
        else:
            self._unsaid += 1

    def _cut_first(self, some: dict[Connection, int], reason: str) -> None:
        connection = next(iter(some))
        del some[connection]
        connection.cut(reason)


def _one_line(text: str) -> str:
    """Strangers choose some of the words: they must not pass for another line, or for the terminal's orders."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:LINE_LENGTH_MAX])
