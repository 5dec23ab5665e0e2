"""The contract of every registry: who leads a job, under which epoch, and what leaders wrote; one at a time.

At most one leader writes at any moment, epochs grow and never repeat, and a leader that may have
been replaced knows it before its successor can act. Everything lies below `/shoal/<job>/`. Nothing
in training waits for a registry: it is asked when a process starts, and when somebody died.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from shoal.errors import ConfigurationError, RegistryError
from shoal.vocabulary import Value

LEASE_MS = 3_000  # a leader whose word does not get through for so long has been replaced, or may be
ANSWER_MS = 5_000  # for one question or write
JOB_MAX = 64  # characters
NAME_MAX = 128  # characters, of a name or a key
ADDRESS_MAX = 512  # characters
VALUE_BYTES_MAX = 1 << 20  # etcd itself takes 1.5 MiB a request


class Leader(Value, frozen=True, array_like=True):
    """Who leads, where it is reached, and the epoch that fences all who led before."""

    name: str
    address: str
    epoch: int


class Leadership(Protocol):
    """The right to act as leader, until `lost` is done."""

    @property
    def epoch(self) -> int:
        """Greater than that of every leader before."""

    @property
    def until(self) -> float:
        """By time.monotonic(), how long it lasts in any case: later with every renewal; infinity: as this process.

        Who was stopped itself looks here before it acts; `lost` may come earlier, and may not be done yet.
        """

    @property
    def lost(self) -> asyncio.Future[str]:
        """Done, with the reason, as soon as somebody else may lead: by the holder's own clock where nothing arrives."""

    async def write(self, key: str, value: bytes) -> None:
        """Write a value, only if this epoch still leads. Writes happen in the order of their calls.

        Raises FencedError, with nothing changed, when it does not; DeadlineError when the registry does
        not answer, and then the value may be written or not: write it again. RegistryError when it
        cannot be kept, ConfigurationError for a key or value beyond the limits.
        """

    async def resign(self) -> None:
        """Let the next one lead at once. Also after `lost`, and more than once."""


class Registry(Protocol):
    """One job's registry. All methods run on one event loop. Raises RefusedError where the service says no."""

    @property
    def name(self) -> str:
        """What and where it is, for people; without passwords."""

    async def campaign(self, name: str, address: str, deadline_ms: int) -> Leadership:
        """Wait until nobody else leads, then lead.

        Raises DeadlineError, which says who leads, when that takes longer than deadline_ms.
        """

    async def leader(self) -> Leader | None:
        """Who leads now. Raises DeadlineError when the registry does not answer."""

    def changes(self) -> AsyncGenerator[Leader | None, None]:
        """The present leader, then every change, for as long as it is read.

        Goes on when members of the registry die, and waits while all are gone; only its first question has
        a deadline (DeadlineError). The newest state always arrives; one that was over within 50 ms, or
        while the registry could not be reached, may be left out.
        """

    async def read(self, key: str) -> bytes | None:
        """What the last `write` of this key wrote, by whichever leader; None: nothing. Raises as `leader`."""

    async def close(self) -> None:
        """Resign what is held, end what waits."""


# --- what both registries check ------------------------------------------------------------------

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # no "..", nothing hidden, no separator


def checked_job(job: str) -> str:
    """The name of a job (ConfigurationError for one that cannot be part of a key)."""
    if len(job) > JOB_MAX or not _SEGMENT.fullmatch(job):
        raise ConfigurationError(
            f"{job[:JOB_MAX]!r} cannot name a job in a registry: 1 to {JOB_MAX} of a-z, A-Z, 0-9, '.', '_' and '-', "
            "with a letter, a digit or '_' first"
        )
    return job


def checked_name(name: str) -> str:
    """A leader's name or a value's key, such as "coordinator/1" (ConfigurationError where it is none)."""
    if len(name) > NAME_MAX or not all(_SEGMENT.fullmatch(segment) for segment in name.split("/")):
        raise ConfigurationError(
            f"{name[:NAME_MAX]!r} is no name or key for a registry: 1 to {NAME_MAX} characters, words of a-z, A-Z, "
            "0-9, '.', '_' and '-' with '/' between them, each with a letter, a digit or '_' first"
        )
    return name


def checked_value(key: str, value: bytes) -> bytes:
    """The value to write (ConfigurationError if it is too long)."""
    if len(value) > VALUE_BYTES_MAX:
        raise ConfigurationError(
            f"{key} of {len(value)} bytes is too much for a registry: at most {VALUE_BYTES_MAX}; "
            "keep it elsewhere, and write where that is"
        )
    return value


def encoded(name: str, address: str, epoch: int = 0) -> bytes:
    """A leader's entry (ConfigurationError for a name or an address that cannot be one)."""
    if not 0 < len(address) <= ADDRESS_MAX or not address.isprintable():
        raise ConfigurationError(f"{address[:ADDRESS_MAX]!r} is no address: 1 to {ADDRESS_MAX} printable characters")
    return msgspec.json.encode(Leader(checked_name(name), address, epoch))


def decoded(entry: bytes, where: str) -> Leader:
    """The leader's entry found at `where` (RegistryError if Shoal did not write it)."""
    try:
        leader = msgspec.json.decode(entry, type=Leader)
        encoded(leader.name, leader.address)  # whatever else can write there
        return leader
    except (msgspec.DecodeError, ConfigurationError) as error:
        raise RegistryError(f"{where} was not written by Shoal ({error}): remove it, or use another registry") from None


def told(leader: Leader | None) -> str:
    """Who leads, for an error."""
    if leader is None:
        return "nobody is known to lead"
    return f"{leader.name} at {leader.address} leads under epoch {leader.epoch}"
