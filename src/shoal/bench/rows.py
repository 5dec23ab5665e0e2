"""What every benchmark writes: a JSON list of rows, one per measurement, with the same first fields."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from shoal.errors import ConfigurationError


class Seconds(msgspec.Struct, frozen=True):
    """A distribution of durations. samples: how many there are."""

    min: float
    median: float
    max: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Seconds:
        """The distribution of at least one value."""
        return cls(min(values), statistics.median(values), max(values), len(values))


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of Shoal. What a benchmark measures beside this, its own kind of row adds.

    params: elements of the model, as built. seconds: of one step. ratio: median seconds of Shoal over
    those of the peer in the same run (below 1: Shoal is quicker); None without a peer. floor_share:
    the least seconds the step could take on this machine over Shoal's median (1: no faster is
    possible); None where a benchmark knows no floor.
    """

    bench: str
    params: int
    workers: int
    servers: int
    transport: str
    policy: str
    optimizer: str
    peer: str | None
    seconds: Seconds
    ratio: float | None
    floor_share: float | None


def check_writable(path: Path | None) -> None:
    """Raises ConfigurationError, before anything is measured, when `path` has no folder to lie in."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigurationError(f"cannot write --json {path}: the folder {path.absolute().parent} does not exist")


def write(path: Path, rows: Sequence[msgspec.Struct]) -> None:
    """Writes the rows as a JSON list."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(list(rows)), indent=2) + b"\n")
