"""Consistency policies: small frozen values with pure functions over a view of the job.

Sync is bulk synchronous parallel; with a quorum below 1 it is Sync with backup workers (Chen et
al. 2016, arXiv 1604.00981): gradients that come after their commit are dropped. Bounded is stale
synchronous parallel (Ho et al. 2013): a worker's parameters contain every contribution of every
live worker for clocks up to its own minus the staleness bound. Async is Bounded without a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from shoal.errors import ConfigurationError
from shoal.vocabulary import PolicySpec


@dataclass(frozen=True)
class View:
    """What a policy may know. Workers that are parked without samples are not in it.

    clocks: the clock that each live, busy worker is working on, or has made ready.
    ready: workers whose contribution for their clock is complete and not yet committed.
    """

    clocks: Mapping[int, int]
    ready: frozenset[int]


@dataclass(frozen=True)
class Go:
    """Commit these workers' contributions as one entry (in worker order)."""

    workers: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    reason: str


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


@dataclass(frozen=True)
class Sync:
    """Commit a clock when the quorum of the live workers is ready for it."""

    quorum: float = 1.0

    def __post_init__(self) -> None:
        quorum: object = self.quorum  # users write what they like
        if not isinstance(quorum, (int, float)) or not 0.0 < quorum <= 1.0:
            raise ConfigurationError(
                f"Sync(quorum={quorum!r}): quorum must be a number in (0, 1], as in Sync(quorum=0.9); "
                f"1.0 waits for every worker"
            )

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="sync", quorum=self.quorum)

    @property
    def lockstep(self) -> bool:
        return True

    @property
    def still(self) -> bool:
        return self.quorum == 1.0  # who is late for a quorum computes while the others' commit is applied

    def commit(self, view: View) -> Go | Wait:
        needed = math.ceil(self.quorum * len(view.clocks) - 1e-9)
        if not view.ready:
            return Wait("no worker is ready")
        if len(view.ready) < needed:
            late = sorted(set(view.clocks) - view.ready)
            return Wait(f"{len(view.ready)} of the {needed} workers needed are ready; not yet: {late}")
        return Go(tuple(sorted(view.ready)))

    def read(self, view: View, finished: int) -> Wait | None:
        return None  # a commit is the end of the clock for everyone


@dataclass(frozen=True)
class Bounded:
    """Commit each contribution as it becomes ready; no worker runs more than `staleness` clocks ahead."""

    staleness: int

    def __post_init__(self) -> None:
        staleness: object = self.staleness  # users write what they like
        if not isinstance(staleness, int) or isinstance(staleness, bool) or staleness < 0:
            raise ConfigurationError(
                f"Bounded(staleness={staleness!r}): staleness must be a whole number, 0 or more, "
                f"as in Bounded(staleness=3)"
            )

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="bounded", staleness=self.staleness)

    @property
    def lockstep(self) -> bool:
        return False

    @property
    def still(self) -> bool:
        return False

    def commit(self, view: View) -> Go | Wait:
        return _first_ready(view)

    def read(self, view: View, finished: int) -> Wait | None:
        behind = {worker: clock for worker, clock in view.clocks.items() if clock < finished + 1 - self.staleness}
        if not behind:
            return None
        worker, clock = min(behind.items(), key=lambda item: (item[1], item[0]))
        return Wait(f"worker {worker} is at clock {clock}, more than {self.staleness} behind {finished + 1}")


@dataclass(frozen=True)
class Async:
    """Commit each contribution as it becomes ready; nobody waits for anybody."""

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="async")

    @property
    def lockstep(self) -> bool:
        return False

    @property
    def still(self) -> bool:
        return False

    def commit(self, view: View) -> Go | Wait:
        return _first_ready(view)

    def read(self, view: View, finished: int) -> Wait | None:
        return None


def _first_ready(view: View) -> Go | Wait:
    if not view.ready:
        return Wait("no worker is ready")
    return Go((min(view.ready, key=lambda worker: (view.clocks.get(worker, 0), worker)),))


def checked(sync: object) -> Policy:
    """What a user gave as sync=, if it is a policy (ConfigurationError if not)."""
    if isinstance(sync, (Sync, Bounded, Async)):
        return sync
    examples = "shoal.Sync(), shoal.Sync(quorum=0.9), shoal.Bounded(staleness=3) or shoal.Async()"
    if isinstance(sync, type):
        raise ConfigurationError(f"sync={sync.__name__} is a class, not a policy: with parentheses, give {examples}")
    raise ConfigurationError(f"sync={sync!r} is no policy: give {examples}")


def from_spec(spec: PolicySpec) -> Policy:
    """The policy that a table declares (ConfigurationError for one this version does not know)."""
    match spec.kind:
        case "sync":
            return Sync(spec.quorum)
        case "bounded":
            return Bounded(spec.staleness)
        case "async":
            return Async()
        case other:
            raise ConfigurationError(f"unknown policy {other!r}; known: sync, bounded, async")
