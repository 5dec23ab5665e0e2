"""Where the registry of one test's job is."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from shoal import registry
from shoal.registry import Leader, Registry

ADDRESS = "tcp://127.0.0.1:7000"
SOON_MS = 10_000  # for what should come at once; a machine under load has its time

_numbers = itertools.count()


class Home:
    """lease_ms: the shortest that etcd grants with the elections of its test members."""

    def __init__(self, url: str, lease_ms: int = 1_000) -> None:
        self.url = url
        self.lease_ms = lease_ms
        self.job = f"job-{os.getpid()}-{next(_numbers)}"

    @property
    def embedded(self) -> bool:
        return self.url.startswith("file:")

    @asynccontextmanager
    async def open(self, url: str = "") -> AsyncIterator[Registry]:
        opened = registry.open(url or self.url, self.job, self.lease_ms)
        try:
            yield opened
        finally:
            await opened.close()


async def following(changes: AsyncGenerator[Leader | None, None], told: list[Leader | None]) -> None:
    """Note all changes, until cancelled or closed."""
    async for leader in changes:
        told.append(leader)


async def until(told: list[Leader | None], name: str | None) -> None:
    """Wait until the newest change says that `name` leads; None: nobody."""
    async with asyncio.timeout(SOON_MS / 1000):
        while not told or (told[-1].name if told[-1] else None) != name:
            await asyncio.sleep(0.01)
