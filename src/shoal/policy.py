"""Consistency policies: small frozen values with pure functions over a view of the job.

Sync is bulk synchronous parallel; with a quorum below 1 it is Sync with backup workers (Chen et
al. 2016, arXiv 1604.00981): gradients that come after their commit are dropped. Bounded is stale
synchronous parallel (Ho et al. 2013): a worker's parameters contain every contribution of every
live worker for clocks up to its own minus the staleness bound. Async is Bounded without a bound.

With a grace Sync waits a little longer for those that the quorum leaves behind. Decoupled is that without a common
clock: whatever is ready when quorum and grace are over is one commit, and who comes later is in the next (Decoupled
DiLoCo, arXiv 2604.21428).

Bounded and Async may take the age of a contribution into account, the updates since the version it was computed on
(core/ages.py): by a weight, as in staleness-aware Async-SGD (Zhang et al. 2016, arXiv 1511.05950, equation 5, which
divides the learning rate by the staleness), by a bound, above which a contribution is dropped, or by compensation for
what has changed meanwhile (DC-ASGD: Zheng et al. 2017, arXiv 1609.08326), which servers do (core/compensation.py).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeAlias

from shoal.errors import ConfigurationError
from shoal.vocabulary import NO_AGE_MAX, PolicySpec


@dataclass(frozen=True)
class DelayCompensated:
    """DC-ASGD: a gradient g that was computed on parameters w_then becomes what it would about be on w_now, by a first
    order Taylor expansion with g g^T in place of the Hessian (Zheng et al., arXiv 1609.08326, equation 10):

        g' = g + lambda g * g * (w_now - w_then)

    The adaptive form (DC-ASGD-a) has, for each element, lambda = rate / sqrt(square + 1e-7), where
    square = mean_square square + (1 - mean_square) g * g; with mean_square=0 lambda is the rate everywhere (DC-ASGD-c).
    ConfigurationError for a rate that is not above 0, or a mean_square outside [0, 1).
    """

    rate: float = 2.0
    mean_square: float = 0.95

    def __post_init__(self) -> None:
        for value, least, what in (
            (self.rate, math.ulp(0.0), "rate must be a number above 0"),
            (self.mean_square, 0.0, "mean_square must be a number from 0 (a constant rate) up to, not including, 1"),
        ):
            given: object = value  # users write what they like
            number = isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
            if not number or value < least or (what.startswith("mean") and value >= 1):
                raise ConfigurationError(f"{self!r}: {what}, as in DelayCompensated(rate=2.0, mean_square=0.95)")


Known: TypeAlias = "Sync | Bounded | Async | Decoupled"
Weight = Literal["equal", "inverse"] | DelayCompensated
NAMED = ("equal", "inverse")
DELAY = "delay"  # the name of DelayCompensated in a PolicySpec


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


@dataclass(frozen=True)
class Bounded:
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

    def weigh(self, age: int) -> float | None:
        return _weigh(self.weight, self.age_max, age)

    @property
    def compensation(self) -> DelayCompensated | None:
        return self.weight if isinstance(self.weight, DelayCompensated) else None


@dataclass(frozen=True)
class Async:
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

    def weigh(self, age: int) -> float | None:
        return _weigh(self.weight, self.age_max, age)

    @property
    def compensation(self) -> DelayCompensated | None:
        return self.weight if isinstance(self.weight, DelayCompensated) else None


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


def _first_ready(view: View) -> Go | Wait:
    if not view.ready:
        return Wait("no worker is ready")
    return Go((min(view.ready, key=lambda worker: (view.clocks.get(worker, 0), worker)),))


def _weigh(weight: Weight, age_max: int | None, age: int) -> float | None:
    if age_max is not None and age > age_max:
        return None
    return 1.0 / (1 + age) if weight == "inverse" else 1.0


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


def in_words(spec: PolicySpec) -> str:
    """The policy as one writes it in a script, without what is as usual: Async(age_max=16)."""
    policy = from_spec(spec)
    given = [(item, getattr(policy, item.name)) for item in fields(policy)]
    told = [f"{item.name}={value!r}" for item, value in given if value != item.default]
    return f"{type(policy).__name__}({', '.join(told)})"


def parsed(text: str) -> Known:
    """The policy that is written as in a script, such as Bounded(staleness=3), or by its name alone where that is
    enough (ConfigurationError for anything else)."""
    try:
        call = ast.parse(text.strip().replace("shoal.", ""), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        found: Known = _called(call, {kind.__name__.lower(): kind for kind in KINDS})
        return found
    except (SyntaxError, ValueError, KeyError, TypeError):
        examples = "Sync(), 'Sync(quorum=0.9)', 'Bounded(staleness=3)', 'Async(weight=\"inverse\", age_max=16)'"
        raise ConfigurationError(f"{text!r} is no policy: write it as in a script, such as {examples}") from None


def _called(call: ast.expr, known: Mapping[str, Any]) -> Any:
    """What a call of one of these, by lower-case name, makes; or the literal that it is."""
    if not isinstance(call, ast.Call):
        if known is not WEIGHTS:
            raise ValueError(call)
        return ast.literal_eval(call)
    kind = known[call.func.id.lower() if isinstance(call.func, ast.Name) else ""]
    given = {item.arg or "": _called(item.value, WEIGHTS) for item in call.keywords}
    return kind(*(_called(value, WEIGHTS) for value in call.args), **given)


def harm(policy: Policy, rule: str) -> str:
    """What is known to go wrong with a rule (by name) under this policy, and what helps; "": nothing.

    A small GPT lost 0.57 nats to AdamW at 1e-3 with gradients 4 updates old, and neither weights nor DC-ASGD gave them
    back: moments mix what was computed on different parameters. Simulated; ours (issue 5 of this repository).
    """
    stale = isinstance(policy, Async | Decoupled) or (isinstance(policy, Bounded) and policy.staleness > 0)
    if not stale or rule not in MOMENTS:
        return ""
    return (
        f"{in_words(policy.spec)} with {MOMENTS[rule]} is known to harm: its moments mix gradients that were computed "
        f"on different parameters. Use shoal.Sync(quorum=0.9), which waits for no straggler, shoal.LocalSteps(...), or "
        f"shoal.SGD; `shoal status` shows how old contributions are"
    )


WEIGHTS: Mapping[str, Any] = {"delaycompensated": DelayCompensated}
KINDS: tuple[type[Known], ...] = (Sync, Bounded, Async, Decoupled)
MOMENTS = {"adam": "Adam", "adamw": "AdamW", "lamb": "LAMB"}  # rules of Adam's family
