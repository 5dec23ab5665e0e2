"""The office of a coordinator where a registry says who leads: it stands by, leads, and keeps the placement there.

What is promised: whoever leads knows whether the job has begun under another one, and whether it is over; what it
writes never holds up a step. The registry keeps, under "placement", what the last leader knew of who holds what.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from typing import Any

import msgspec

from shoal import registry
from shoal.config import Job
from shoal.errors import ConfigurationError, FencedError, RefusedError, RegistryError, ShoalError
from shoal.registry import Leadership
from shoal.registry.base import ANSWER_MS, LEASE_MS
from shoal.wire.replica import Placed

KEY = "placement"
CAMPAIGN_MS = 10_000  # at a time; a standby goes on for as long as it lives
PAUSE_SECONDS = 0.5  # before a write that failed is tried again
LAST_SECONDS = 1.0  # for the last word, that the job is over


class Placement(msgspec.Struct, frozen=True):
    """What the registry keeps of a job. run: tells one start of a job from another under the same name."""

    run: str
    epoch: int
    state: str  # "forming", "running" or "over"
    view: int = 0
    chains: tuple[tuple[int, ...], ...] = ()  # by shard its servers, the primary first
    filling: tuple[int, ...] = ()
    addresses: tuple[tuple[int, str], ...] = ()


Lead = Callable[[Leadership, bool], None]  # whether another one has led this job before


class Office:
    """One coordinator process's place in the registry. Belongs to the event loop that it is made on."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        """say: takes a line for people. Raises ConfigurationError for a registry that cannot be."""
        # Well before workers and servers would give up on a coordinator, another one must lead.
        self._registry = registry.open(job.registry, job.name, min(LEASE_MS, max(1, job.limits.lease_ms // 3)))
        self._say = say
        self._run = hashlib.sha256(f"{job.name} {job.token}".encode()).hexdigest()[:16]
        self._leadership: Leadership | None = None
        self._wanted: Placement | None = None  # to be written
        self._writing: asyncio.Task[None] | None = None

    async def campaign(self, address: str) -> tuple[Leadership, bool] | None:
        """Stand by until this process leads; None: the job is over by then.

        Returns the leadership, and whether another coordinator has led the job before. While the registry does not
        answer, it is asked again; raises what asking again cannot help.
        """
        while True:
            try:
                return await self._led(address)
            except (RefusedError, ConfigurationError):
                raise
            except ShoalError as error:
                await self._complain(error)

    async def _led(self, address: str) -> tuple[Leadership, bool] | None:
        leadership = await self._registry.campaign(f"coordinator/{os.getpid()}", address, CAMPAIGN_MS)
        try:
            found = await self._found()
            if found is not None and found.state == "over":
                await leadership.resign()
                return None
            if found is None:  # from here on, whoever follows takes over
                await leadership.write(KEY, msgspec.json.encode(Placement(self._run, leadership.epoch, "forming")))
        except ShoalError:
            await leadership.resign()
            raise
        self._leadership = leadership
        return leadership, found is not None

    async def _found(self) -> Placement | None:
        """What a coordinator of this very start of the job wrote."""
        value = await self._registry.read(KEY)
        try:
            found = None if value is None else msgspec.json.decode(value, type=Placement)
        except msgspec.DecodeError as error:
            raise RegistryError(f"{KEY} in {self._registry.name} was not written by Shoal ({error})") from None
        return found if found is not None and found.run == self._run else None

    async def _complain(self, error: ShoalError) -> None:
        """Only if nobody can be asked who leads: that somebody does is as it should be."""
        try:
            await self._registry.leader()
        except ShoalError:
            self._say(f"warning: {error}")
            await asyncio.sleep(PAUSE_SECONDS)

    def keep(self, placed: Placed) -> None:
        """Write who holds what from now on, beside everything else; of several only the newest."""
        if self._leadership is None:
            return
        facts = (placed.view, placed.chains, placed.filling, placed.addresses)
        self._wanted = Placement(self._run, self._leadership.epoch, "running", *facts)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write(self._leadership))

    async def _write(self, leadership: Leadership) -> None:
        while self._wanted is not None:
            wanted = self._wanted
            try:
                await leadership.write(KEY, msgspec.json.encode(wanted))
            except FencedError:
                return  # `lost` says so to whom it concerns
            except ShoalError as error:
                self._say(f"warning: {error}; it is written again, and training goes on")
                await asyncio.sleep(max(PAUSE_SECONDS, ANSWER_MS / 10_000))
                continue
            if self._wanted is wanted:
                self._wanted = None

    async def close(self, over: bool) -> None:
        """Let another one lead, or, if the job is over, nobody."""
        if self._writing is not None:
            self._writing.cancel()
        leadership = self._leadership
        if leadership is not None and over and not leadership.lost.done():
            last: Any = Placement(self._run, leadership.epoch, "over")
            try:
                async with asyncio.timeout(LAST_SECONDS):
                    await leadership.write(KEY, msgspec.json.encode(last))
            except (ShoalError, TimeoutError):
                pass  # who leads next finds no server, and ends, too
        await self._registry.close()
