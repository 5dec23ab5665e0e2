"""What the benchmarks and their workers say to each other."""

from __future__ import annotations

from typing import Literal

import msgspec

from shoal.vocabulary import PolicySpec

SHOAL = "shoal"

# --- exchange -------------------------------------------------------------------------------------


Role = Literal["worker", "server", "leader"]


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Which process this is. side: "shoal" or the name of a peer. meeting: where peers find each other.

    role: what it is among its side's processes; a leader is a peer's own, and starts the others. title: what its
    side is called where two are alike.
    """

    side: str
    title: str = ""
    rank: int = 0
    role: Role = "worker"
    params: int
    workers: int
    servers: int
    transport: str
    optimizer: str
    control: str
    meeting: str = ""

    @property
    def name(self) -> str:
        """What this process is called in errors."""
        side = self.title or self.side
        return f"{side} {self.role}" if self.role != "worker" else worker_name(side, self.rank)


class Order(msgspec.Struct, frozen=True):
    """Take this many steps; with 0, say what came out of all steps so far. part: which kind of step, if several."""

    steps: int
    part: str = ""


class Answer(msgspec.Struct, frozen=True):
    """seconds: of each step. digests: of the parameters, one a worker (a leader answers for all of them).

    difference: from the reference; one worker of a side says it.
    """

    seconds: tuple[float, ...] = ()
    digests: tuple[str, ...] = ()
    difference: float | None = None


def worker_name(side: str, rank: int) -> str:
    """What a worker is called in errors."""
    return f"{side} worker {rank}"


# --- overlap --------------------------------------------------------------------------------------


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """A GPT and its batches. vocabulary, context, layers, heads, width: the model's; batch: sequences a step."""

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int
    batch: int


class Trainee(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker of which side this is."""

    side: str
    rank: int
    workers: int
    optimizer: str
    size: Size
    control: str
    meeting: str

    @property
    def name(self) -> str:
        """What this process is called in errors."""
        return worker_name(self.side, self.rank)


COMPUTE, EXCHANGE, BOTH = "compute", "exchange", "both"  # kinds of steps

# --- straggler ------------------------------------------------------------------------------------


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker this is, and how long it sleeps for each sample in place of computing."""

    rank: int
    control: str
    sample_seconds: float
    batch: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Train for `seconds` in the job at `coordinator`; "": alone, without any exchange.

    balance: what ps.loader is given; None leaves it to the policy.
    """

    seconds: float
    coordinator: str = ""
    policy: PolicySpec | None = None
    balance: bool | None = None


class Done(msgspec.Struct, frozen=True):
    """One step: seconds since the worker began, its samples, and whether its contribution was committed."""

    at: float
    samples: int
    committed: bool


class Log(msgspec.Struct, frozen=True):
    """All steps of a trial, in order."""

    steps: tuple[Done, ...]


# --- sharing --------------------------------------------------------------------------------------


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """Which job's worker this is, and what it trains."""

    name: str
    params: int
    optimizer: str
    control: str


class Window(msgspec.Struct, frozen=True):
    """Take steps for so long; the Answer has the seconds of each."""

    seconds: float


# --- replication ----------------------------------------------------------------------------------


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """What a process passes the rule over. shared: it lies in memory as that of a server that shares it does."""

    name: str
    params: int
    optimizer: str
    shared: bool
    threads: int
    control: str


# --- snapshot -------------------------------------------------------------------------------------


class Keeper(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker this is, and what it trains."""

    rank: int
    params: int
    optimizer: str
    control: str


class Shot(msgspec.Struct, frozen=True):
    """Take this many steps; with 0, until the snapshot that worker 0 has written to `path` is complete.

    last: a file in which worker 0 tells the others how many steps that is.
    """

    steps: int
    path: str = ""
    last: str = ""


class Taken(msgspec.Struct, frozen=True):
    """seconds: of each step. began: when, in seconds since 1970."""

    seconds: tuple[float, ...]
    began: float
