"""A coordinator that can be knocked at, for the tests of who is let in."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from shoal.config import Job, Tls
from shoal.runtime.coordinator import CoordinatorNode
from shoal.runtime.loop_thread import LoopThread

from ..transport.certificates import certificate
from .cluster import QUICK

LIMITS = QUICK
JOB = Job("promise", "secret", limits=LIMITS)
FOREIGN, OWN = "of another authority", "good"


class Heard(CoordinatorNode):
    """A coordinator whose log lines are kept."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


@contextmanager
def listening(job: Job) -> Iterator[tuple[Heard, str]]:
    """A coordinator, and its address."""
    thread = LoopThread("test-coordinator")

    async def opened() -> Heard:
        return Heard(job)

    node = thread.call(opened())
    try:
        yield node, thread.call(node.listen("tcp://127.0.0.1:0"))
    finally:
        thread.call(node.close())
        thread.stop()


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def one_line(node: Heard, words: str) -> Iterator[None]:
    """What happens in the block is refused by one line, soon, and nothing is left of it."""
    start = time.monotonic()
    yield
    wait_until(lambda: node.said)
    wait_until(lambda: not len(node._strangers) and not node._links)
    assert time.monotonic() - start < 5  # half of connect_ms
    time.sleep(0.05)
    (line,) = node.said
    assert re.search(words, line), line


def secured(kind: str = OWN, trusts: str = OWN) -> Tls:
    return replace(certificate(kind), authority=certificate(trusts).authority)


def connected(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)
