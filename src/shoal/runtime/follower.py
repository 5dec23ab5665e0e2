"""A follower: keeps a node with the coordinator that leads, as the job's registry has it.

The registry is asked when the node starts, and from when its coordinator is lost or silent until one is
reached. While it does not answer, the address that is known is tried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from shoal import registry
from shoal.config import Job
from shoal.core.following import Following
from shoal.errors import DeadlineError, ShoalError
from shoal.registry import Leader, Registry

PAUSE_SECONDS = 0.2  # between two tries of a registry that does not answer


class Follower:
    """Belongs to the event loop of its node. go: takes the address of another coordinator, to connect to it."""

    def __init__(self, job: Job, address: str, go: Callable[[str], None]) -> None:
        self._job = job
        self._go = go
        self._following = Following(job.limits, address)
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def find(self) -> str:
        """Where the coordinator is that leads now; where it was said to be, if the registry does not tell in time."""
        try:
            async with asyncio.timeout(self._job.limits.connect_ms / 1000):
                await self._look(lambda leader: self._following.told(leader.epoch, leader.address) or True)
        except (DeadlineError, TimeoutError):
            pass
        return self._following.address

    def tick(self) -> None:
        self._following.tick(_now())
        self._seek()

    def lost(self) -> None:
        """The connection broke, or could not be made."""
        self._following.lost()
        self._seek()

    def reached(self) -> None:
        """The coordinator is there."""
        self._following.reached(_now())
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def close(self) -> None:
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()

    def _seek(self) -> None:
        looks = self._looking is not None and not self._looking.done()
        if self._following.seeks and not self._closed and not looks:
            self._looking = asyncio.get_running_loop().create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        """Until the coordinator is reached."""
        while True:
            try:
                await self._look(self._told)
            except ShoalError:
                await asyncio.sleep(PAUSE_SECONDS)  # how long to wait in all, the node's machine says

    def _told(self, leader: Leader) -> bool:
        if self._following.told(leader.epoch, leader.address):
            self._go(leader.address)
        return False

    async def _look(self, told: Callable[[Leader], bool]) -> None:
        """Tell every leader that comes, until one is enough."""
        place: Registry = registry.open(self._job.registry, self._job.name)
        try:
            async with aclosing(place.changes()) as changes:
                async for leader in changes:
                    if leader is not None and told(leader):
                        return
        finally:
            await place.close()


def _now() -> int:
    return time.monotonic_ns() // 1_000_000
