"""Messages of a fleet: between a launcher and the members that lend it places for its servers.

    launcher -> member    Lend              answered by  Lent | Declined
    launcher -> member    Signal            (a signal for a process that is lent)
    member   -> launcher  Said, Ended       (what the process writes; that it is over)
    member   -> launcher  Leaving           (the member ends, and all that it lent with it)
    both ways             Pulse             (a sign of life)
    visitor  -> member    PlacesRequest     answered by  Places

They go over the one connection between the two, in order. A connection that breaks ends what was lent
over it, so nothing is ever repeated. A process is known by its number, which its launcher chose.
"""

from __future__ import annotations

import msgspec

from shoal.wire.message import Message

FLEET = "(fleet)"  # in place of a job's name in Hello: no job is meant
LAUNCHER = "launcher/"  # a launcher's name in Hello, with something of its own behind


class Lend(Message, frozen=True, array_like=True, tag=True):
    """Start a server of this job. environment: SHOAL_* variables that tell it what it is."""

    number: int
    job: str
    name: str
    environment: dict[str, str]


class Lent(Message, frozen=True, array_like=True, tag=True):
    number: int
    pid: int


class Declined(Message, frozen=True, array_like=True, tag=True):
    number: int
    reason: str


class Signal(Message, frozen=True, array_like=True, tag=True):
    number: int
    signal: int


class Said(Message, frozen=True, array_like=True, tag=True):
    number: int
    text: str  # one line


class Ended(Message, frozen=True, array_like=True, tag=True):
    """status: exit status, or minus the number of a signal."""

    number: int
    status: int


class Leaving(Message, frozen=True, array_like=True, tag=True):
    reason: str


class Pulse(Message, frozen=True, array_like=True, tag=True):
    pass


class PlacesRequest(Message, frozen=True, array_like=True, tag=True):
    pass


class Loan(msgspec.Struct, frozen=True, array_like=True):
    """What one job has borrowed. launcher: host, process id and more; processes: name and process id of each."""

    job: str
    launcher: str
    held_ms: int
    processes: tuple[tuple[str, int], ...]


class Places(Message, frozen=True, array_like=True, tag=True):
    pid: int
    places: int
    places_per_job: int
    taken: int  # by processes that run, those that are ending among them
    loans: tuple[Loan, ...]


Any = Lend | Lent | Declined | Signal | Said | Ended | Leaving | Pulse | PlacesRequest | Places
