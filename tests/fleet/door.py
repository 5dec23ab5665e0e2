"""A fleet's member inside the test's own process, whose log lines are kept, and what its launcher hears."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from shoal.config import Job, Tls
from shoal.launch.child import Exited, Line
from shoal.launch.fleet import fleet_job
from shoal.launch.member import FleetMember
from shoal.runtime.loop_thread import LoopThread

TOKEN = "the fleet's"


class Heard(FleetMember):
    """A member whose log lines are kept."""

    def __init__(self, job: Job, places: int) -> None:
        super().__init__(job, "127.0.0.1", places, places)
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def environment(token: str = TOKEN, tls: Tls | None = None, **limits: object) -> dict[str, str]:
    """Of who is, or wants something of, the member."""
    files = {} if tls is None else tls.environment()
    named = {f"SHOAL_{name.upper()}": str(value) for name, value in limits.items()}
    return {"SHOAL_FLEET_TOKEN": token, "SHOAL_CONNECT_MS": "10000", **files, **named}


@contextmanager
def lending(settings: Mapping[str, str], places: int = 2) -> Iterator[tuple[Heard, str]]:
    """A member with these places, and its address."""
    thread = LoopThread("test-member")

    async def opened() -> Heard:
        return Heard(fleet_job(settings, places), places)

    node = thread.call(opened())
    try:
        yield node, thread.call(node.listen("tcp://127.0.0.1:0"))
    finally:
        thread.call(node.close())
        thread.stop()


class Told:
    """What a launcher hears of its children."""

    def __init__(self) -> None:
        self.events: SimpleQueue[Line | Exited] = SimpleQueue()
        self.lines: list[str] = []

    def line(self, words: str, seconds: float = 40.0) -> str:
        """The first line from now on that matches."""
        until = time.monotonic() + seconds
        while True:
            try:
                event = self.events.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                raise AssertionError(f"no line {words!r} among {self.lines}") from None
            if isinstance(event, Line):
                self.lines.append(event.text)
                if re.search(words, event.text):
                    return event.text
