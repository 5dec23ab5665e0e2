"""What a policy sees and answers, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shoal.policy.delay import DelayCompensated
from shoal.vocabulary import PolicySpec


@dataclass(frozen=True)
class View:
    """What a policy may know. Workers that are parked without samples are not in it.

    clocks: the clock that each live, busy worker is working on, or has made ready.
    ready: workers whose contribution for their clock is complete and not yet committed; waited_ms: for how long each
    of them has been.
    """

    clocks: Mapping[int, int]
    ready: frozenset[int]
    waited_ms: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Go:
    """Commit these workers' contributions as one entry (in worker order)."""

    workers: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """left_ms: above 0: by then the answer is another one, if nothing happens before."""

    reason: str
    left_ms: int = 0


class Policy(Protocol):
    """Decides what is committed, and when a worker may go on."""

    @property
    def spec(self) -> PolicySpec: ...

    @property
    def lockstep(self) -> bool:
        """True: all workers share one clock, and a commit settles it for all of them."""
        ...

    @property
    def still(self) -> bool:
        """True: parameters do not change while any member computes on them, so it need not copy them."""
        ...

    def commit(self, view: View) -> Go | Wait:
        """The next entry to append, if any; called again after each Go."""
        ...

    def read(self, view: View, finished: int) -> Wait | None:
        """None: a worker that finished clock `finished` may have parameters and go on."""
        ...

    def weigh(self, age: int) -> float | None:
        """The factor of a contribution that is so many updates old; None: it is too old, and dropped."""
        ...

    @property
    def compensation(self) -> DelayCompensated | None:
        """How servers make up for what has changed since a gradient was computed; None: they do not."""
        ...
