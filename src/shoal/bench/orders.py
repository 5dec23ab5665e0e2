"""What the benchmarks and their workers say to each other."""

from __future__ import annotations

import msgspec

from shoal.vocabulary import PolicySpec

SHOAL = "shoal"

# --- exchange -------------------------------------------------------------------------------------


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker this is. side: "shoal" or the name of a peer. meeting: where peers find each other."""

    side: str
    rank: int
    params: int
    workers: int
    servers: int
    transport: str
    optimizer: str
    control: str
    meeting: str = ""


class Order(msgspec.Struct, frozen=True):
    """Take this many steps; with 0, say what came out of all steps so far."""

    steps: int


class Answer(msgspec.Struct, frozen=True):
    """seconds: of each step. digest: of the parameters. difference: from the reference (rank 0 only)."""

    seconds: tuple[float, ...] = ()
    digest: str = ""
    difference: float | None = None


def worker_name(side: str, rank: int) -> str:
    """What a worker is called in errors."""
    return f"{side} worker {rank}"


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
