"""What happens in a simulated run, as seen from outside the machines: facts, for the invariants to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from shoal.core import machine as k
from shoal.sim.feedback import Residual, Taken
from shoal.sim.symbols import States, Tag
from shoal.vocabulary import Contributor
from shoal.wire import messages as m


@dataclass(frozen=True)
class Said:
    """The coordinator sent a message (whether or not it arrives)."""

    target: str
    message: m.Message
    at_ms: int = 0


@dataclass(frozen=True)
class Told:
    """The coordinator is about to receive a message."""

    source: str
    message: m.Message
    at_ms: int = 0


@dataclass(frozen=True)
class Performed:
    """A shard's store ran a task. staged: the tags that lay there for each contributor, by block.

    onlookers: (worker, incarnation) of those that compute on this shard's parameters where they lie.
    """

    shard: int
    task: k.Seed | k.Measure | k.Apply
    staged: Mapping[Contributor, Mapping[int, Tag]]
    states: States  # afterwards
    onlookers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Freed:
    shard: int
    contributors: tuple[Contributor, ...]


@dataclass(frozen=True)
class Published:
    shard: int
    effect: k.Publish
    states: States


@dataclass(frozen=True)
class Saw:
    """A worker's training thread goes on with these states in its parameters."""

    worker: int
    incarnation: int
    version: int
    clock: int
    finished: Contributor | None  # the contribution that was settled with it
    committed: bool
    states: States
    in_place: bool = False  # they lie in the servers' own memory
    part: frozenset[int] = frozenset()  # the blocks that it is to have


@dataclass(frozen=True)
class MadeUp:
    """A server makes up for what has changed since a gradient was computed. then: the states its worker was given, as
    far as the server knows; None: it does not. alone: nobody else holds the shard, so it must."""

    shard: int
    contributor: Contributor
    base: int
    then: States | None
    alone: bool


@dataclass(frozen=True)
class Fed:
    """A worker goes on with what its codec had lost: the codes of these contributions were taken from it."""

    worker: int
    taken: Taken


@dataclass(frozen=True)
class Saved:
    """A snapshot is whole, with these residuals."""

    version: int
    residuals: tuple[Residual, ...]


@dataclass(frozen=True)
class Entered:
    """An update has entered the log. lacking: servers that follow the log and do not hold its sum."""

    seq: int
    lacking: tuple[int, ...]


@dataclass(frozen=True)
class Led:
    """The registry lets a coordinator of this epoch lead."""

    epoch: int


@dataclass(frozen=True)
class Spoke:
    """A coordinator sends something. until: as long as the registry has told it that it leads, by its own clock."""

    epoch: int
    now: int
    until: int


@dataclass(frozen=True)
class Kept:
    """A placement is in the registry now, written by the coordinator of this epoch."""

    epoch: int
    view: int


@dataclass(frozen=True)
class Gone:
    """A worker's process ended. killed: it did not leave of its own will."""

    worker: int
    incarnation: int
    killed: bool


@dataclass(frozen=True)
class Admitted:
    """A shard at `version` took blocks of a contribution into its memory."""

    shard: int
    contributor: Contributor
    version: int


@dataclass(frozen=True)
class Ended:
    """The job is over. staged: what still lies in each shard's staging memory. ages, dropped: as `shoal status` has
    them."""

    staged: Mapping[int, tuple[Contributor, ...]]
    ages: Mapping[int, int]
    dropped: int


Fact = (
    Said
    | Told
    | Admitted
    | Performed
    | Freed
    | Published
    | Saw
    | MadeUp
    | Fed
    | Saved
    | Entered
    | Led
    | Spoke
    | Kept
    | Gone
    | Ended
)
FACTS = get_args(Fact)
