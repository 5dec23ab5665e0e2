"""What the two machines of a fleet (lender, borrower) and their drivers say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# --- a member: what happened to the processes that it started, each known by its ticket -----------


@dataclass(frozen=True)
class Spawned:
    """The process of a Spawn runs; or, with a reason, could not be started."""

    ticket: int
    pid: int
    reason: str = ""


@dataclass(frozen=True)
class Wrote:
    """A process wrote this line."""

    ticket: int
    text: str


@dataclass(frozen=True)
class Finished:
    """A process is over. status: exit status, or minus the number of a signal."""

    ticket: int
    status: int


@dataclass(frozen=True)
class Retire:
    """Lend nothing from here on, and end what is lent: the member is told to end, for this reason."""

    reason: str


@dataclass(frozen=True)
class Spawn:
    """Effect: start a server with these variables, and come back with Spawned."""

    ticket: int
    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Kill:
    """Effect: send this signal to a process."""

    ticket: int
    signal: int


# --- a launcher: what it asks for, and what becomes of it, each by the number that it chose -------


@dataclass(frozen=True)
class Borrow:
    """Find a place for this server; answered by Obtained or Unobtainable."""

    number: int
    job: str
    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Forward:
    """Send this signal to a process that was borrowed."""

    number: int
    signal: int


@dataclass(frozen=True)
class Obtained:
    """Effect: the process runs, at this member."""

    number: int
    member: str
    pid: int


@dataclass(frozen=True)
class Unobtainable:
    """Effect: no member lends a place; the reason names each and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Heard:
    """Effect: a borrowed process wrote this line."""

    number: int
    text: str


@dataclass(frozen=True)
class Over:
    """Effect: a borrowed process is over; with a reason, it went with its member."""

    number: int
    status: int
    reason: str = ""


# --- both -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """Effect: the connection to this peer is worth nothing any more; close it at once."""

    peer: str
    reason: str


Effect = Spawn | Kill | Obtained | Unobtainable | Heard | Over | Cut
