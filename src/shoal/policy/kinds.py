"""The policies, and the data that stands for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from shoal.errors import ConfigurationError
from shoal.policy.base import Go, Policy, View, Wait
from shoal.policy.delay import DelayCompensated
from shoal.vocabulary import NO_AGE_MAX, PolicySpec

Known: TypeAlias = "Sync | Bounded | Async | Decoupled"
Weight = Literal["equal", "inverse"] | DelayCompensated
NAMED = ("equal", "inverse")
DELAY = "delay"  # the name of DelayCompensated in a PolicySpec


@dataclass(frozen=True)
class Sync:
    """Commit a clock when the quorum of the live workers is ready for it.

    grace: seconds that are given to the others once it is (to within a tick of the coordinator, 50 ms).
    """

    quorum: float = 1.0
    grace: float = 0.0

    def __post_init__(self) -> None:
        quorum: object = self.quorum  # users write what they like
        if not isinstance(quorum, (int, float)) or not 0.0 < quorum <= 1.0:
            raise ConfigurationError(
                f"Sync(quorum={quorum!r}): quorum must be a number in (0, 1], as in Sync(quorum=0.9); "
                f"1.0 waits for every worker"
            )
        _check_grace(self, self.grace)
        if self.grace and self.quorum == 1.0:
            raise ConfigurationError(f"{self!r}: a grace is for who is left behind: give a quorum below 1, too")

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="sync", quorum=self.quorum, grace=self.grace)

    @property
    def lockstep(self) -> bool:
        return True

    @property
    def still(self) -> bool:
        return self.quorum == 1.0  # who is late for a quorum computes while the others' commit is applied

    def commit(self, view: View) -> Go | Wait:
        return _together(view, math.ceil(self.quorum * len(view.clocks) - 1e-9), self.grace)

    def read(self, view: View, finished: int) -> Wait | None:
        return None  # a commit is the end of the clock for everyone

    def weigh(self, age: int) -> float | None:
        return 1.0  # whoever is late is not in the commit

    @property
    def compensation(self) -> DelayCompensated | None:
        return None


class _OneByOne:
    """What policies share that commit each contribution as it becomes ready, of whatever age it is by then."""

    weight: Weight
    age_max: int | None

    @property
    def lockstep(self) -> bool:
        return False

    @property
    def still(self) -> bool:
        return False

    def commit(self, view: View) -> Go | Wait:
        if not view.ready:
            return Wait("no worker is ready")
        return Go((min(view.ready, key=lambda worker: (view.clocks.get(worker, 0), worker)),))

    def weigh(self, age: int) -> float | None:
        if self.age_max is not None and age > self.age_max:
            return None
        return 1.0 / (1 + age) if self.weight == "inverse" else 1.0

    @property
    def compensation(self) -> DelayCompensated | None:
        return self.weight if isinstance(self.weight, DelayCompensated) else None


@dataclass(frozen=True)
class Bounded(_OneByOne):
    """Commit each contribution as it becomes ready; no worker runs more than `staleness` clocks ahead.

    weight, age_max: as of Async.
    """

    staleness: int
    weight: Weight = "equal"
    age_max: int | None = None

    def __post_init__(self) -> None:
        staleness: object = self.staleness  # users write what they like
        if not isinstance(staleness, int) or isinstance(staleness, bool) or staleness < 0:
            raise ConfigurationError(
                f"Bounded(staleness={staleness!r}): staleness must be a whole number, 0 or more, "
                f"as in Bounded(staleness=3)"
            )
        _check_ages("Bounded", self.weight, self.age_max)

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec("bounded", staleness=self.staleness, **_in_spec(self.weight, self.age_max))

    def read(self, view: View, finished: int) -> Wait | None:
        behind = {worker: clock for worker, clock in view.clocks.items() if clock < finished + 1 - self.staleness}
        if not behind:
            return None
        worker, clock = min(behind.items(), key=lambda item: (item[1], item[0]))
        return Wait(f"worker {worker} is at clock {clock}, more than {self.staleness} behind {finished + 1}")


@dataclass(frozen=True)
class Async(_OneByOne):
    """Commit each contribution as it becomes ready; nobody waits for anybody.

    weight: what a contribution counts that is `age` updates old: "equal", as much as any, or "inverse", 1 / (1 + age);
    DelayCompensated(...): as much as any, made up for what the others have changed.
    age_max: one that is older is dropped, as one that comes too late for a quorum is: the servers take nothing of
    it, its samples are dealt again, and its worker goes on with fresh parameters. None: none is.
    """

    weight: Weight = "equal"
    age_max: int | None = None

    def __post_init__(self) -> None:
        _check_ages("Async", self.weight, self.age_max)

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec("async", **_in_spec(self.weight, self.age_max))

    def read(self, view: View, finished: int) -> Wait | None:
        return None


@dataclass(frozen=True)
class Decoupled:
    """Commit whatever is ready once a quorum has been for a while; nobody waits for anybody (arXiv 2604.21428).

    Workers have no common clock: a contribution that comes when a commit is over is in the next. quorum: how many
    workers' contributions one takes at least (those of all, where there are fewer); grace: seconds that are given to
    the others once so many are ready (to within a tick of the coordinator, 50 ms). The paper's is at most what is left
    of the steps that a worker takes meanwhile.
    """

    quorum: int = 1
    grace: float = 0.0

    def __post_init__(self) -> None:
        quorum: object = self.quorum  # users write what they like
        if not isinstance(quorum, int) or isinstance(quorum, bool) or quorum < 1:
            raise ConfigurationError(
                f"Decoupled(quorum={quorum!r}): quorum must be a whole number of workers, 1 or more, as in "
                f"Decoupled(quorum=2, grace=0.5)"
            )
        _check_grace(self, self.grace)

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec("decoupled", quorum=self.quorum, grace=self.grace)

    @property
    def lockstep(self) -> bool:
        return False

    @property
    def still(self) -> bool:
        return False

    def commit(self, view: View) -> Go | Wait:
        return _together(view, min(self.quorum, len(view.clocks)), self.grace)

    def read(self, view: View, finished: int) -> Wait | None:
        return None

    def weigh(self, age: int) -> float | None:
        return 1.0  # by tokens, where the table says so

    @property
    def compensation(self) -> DelayCompensated | None:
        return None


def _together(view: View, needed: int, grace: float) -> Go | Wait:
    """All that are ready, once so many have been for `grace` seconds, or everybody is."""
    if not view.ready:
        return Wait("no worker is ready")
    late = sorted(set(view.clocks) - view.ready)
    if len(view.ready) < needed:
        return Wait(f"{len(view.ready)} of the {needed} workers needed are ready; not yet: {late}")
    waited_ms = sorted((view.waited_ms.get(worker, 0) for worker in view.ready), reverse=True)[needed - 1]
    left_ms = math.ceil(1000 * grace) - waited_ms
    if late and left_ms > 0:
        return Wait(f"enough workers are ready, and {late} have {grace:g} s of grace", left_ms)
    return Go(tuple(sorted(view.ready)))


def _check_grace(policy: object, grace: object) -> None:  # users write what they like
    number = isinstance(grace, (int, float)) and not isinstance(grace, bool)
    if not number or not 0 <= grace < math.inf:  # type: ignore[operator]
        raise ConfigurationError(f"{policy!r}: grace must be a number of seconds, 0 or more")


def _check_ages(kind: str, weight: object, age_max: object) -> None:  # users write what they like
    if not isinstance(weight, DelayCompensated) and weight not in NAMED:
        known = f"{', '.join(map(repr, NAMED))} and shoal.DelayCompensated(rate=2.0)"
        raise ConfigurationError(f"{kind}(weight={weight!r}): known are {known}")
    if age_max is not None and (not isinstance(age_max, int) or isinstance(age_max, bool) or age_max < 0):
        raise ConfigurationError(
            f"{kind}(age_max={age_max!r}): age_max must be a whole number of updates, 0 or more, as in "
            f"{kind}(age_max=16); None drops nothing"
        )


def _in_spec(weight: Weight, age_max: int | None) -> dict[str, Any]:
    """The same as fields of a PolicySpec."""
    bound = NO_AGE_MAX if age_max is None else age_max
    if isinstance(weight, DelayCompensated):
        return {"weight": DELAY, "age_max": bound, "rate": weight.rate, "mean_square": weight.mean_square}
    return {"weight": weight, "age_max": bound}


def rests(old: Policy, new: Policy) -> bool:
    """Whether all workers must be at rest when `new` takes the place of `old`: clocks get a common meaning or lose it,
    those of the fastest and the slowest may lie far apart, parameters begin, or cease, to change under workers, or
    servers begin to need what each worker was given."""
    drifted = isinstance(old, Async | Decoupled) and isinstance(new, Bounded)
    compensates = old.compensation != new.compensation
    return old.lockstep != new.lockstep or drifted or old.still != new.still or compensates


def checked(sync: object) -> Policy:
    """What a user gave as sync=, if it is a policy (ConfigurationError if not)."""
    if isinstance(sync, KINDS):
        return sync
    examples = "shoal.Sync(), shoal.Sync(quorum=0.9), shoal.Bounded(staleness=3), shoal.Async() or shoal.Decoupled()"
    if isinstance(sync, type):
        raise ConfigurationError(f"sync={sync.__name__} is a class, not a policy: with parentheses, give {examples}")
    raise ConfigurationError(f"sync={sync!r} is no policy: give {examples}")


def from_spec(spec: PolicySpec) -> Known:
    """The policy that a table declares (ConfigurationError for one this version does not know)."""
    match spec.kind:
        case "sync":
            return Sync(spec.quorum, spec.grace)
        case "bounded":
            return Bounded(spec.staleness, *_ages(spec))
        case "async":
            return Async(*_ages(spec))
        case "decoupled":
            return Decoupled(int(spec.quorum), spec.grace)
        case other:
            raise ConfigurationError(f"unknown policy {other!r}; known: sync, bounded, async, decoupled")


def _ages(spec: PolicySpec) -> tuple[Weight, int | None]:
    known: dict[str, Weight] = {"equal": "equal", "inverse": "inverse"}
    if spec.weight == DELAY:
        known[DELAY] = DelayCompensated(spec.rate, spec.mean_square)
    if spec.weight not in known:
        raise ConfigurationError(f"unknown weight {spec.weight!r}; known: {', '.join((*NAMED, DELAY))}")
    return known[spec.weight], None if spec.age_max == NO_AGE_MAX else spec.age_max


KINDS: tuple[type[Known], ...] = (Sync, Bounded, Async, Decoupled)
