"""Commands: all that the training thread can tell its session to do, in the order of a worker's life.

Push, Restart and Tell wait for nothing; every other command is answered by an effect (machine.py),
and the thread is parked until it comes, but for Snapshot, which goes on beside everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.vocabulary import Dataset, TableSpec


@dataclass(frozen=True)
class Begin:
    """Join the job. rank -1: any. nonce: a fresh random number for every life of the process.

    coordinator: its address.
    """

    rank: int
    nonce: int
    pid: int
    coordinator: str = ""


@dataclass(frozen=True)
class Declare:
    """Declare the table. near: servers to share memory with.

    group: (worker, incarnation) of all the ranks of the process group that this worker trains in, by part; (): none.
    """

    spec: TableSpec
    near: tuple[int, ...] = ()
    group: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Await:
    """Wait for the initial parameters (after Seeding, and after pushing the seed if asked to)."""


@dataclass(frozen=True)
class Push:
    """These blocks' gradients are computed and will not change until the step is over. A rank of a group has its own
    part only: of the others nothing is sent."""

    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Restart:
    """Forget what was pushed for this clock; everything will be pushed again as a new attempt."""


@dataclass(frozen=True)
class Finish:
    """Everything of this clock is pushed: make it ready, and wait for fresh parameters.

    far: some server is a long way off: save the round trip between the last block and Ready.
    """

    samples: int
    leases: tuple[int, ...]
    rates: tuple[float, ...]
    multiplier: float = 1.0
    void: bool = False
    far: bool = False
    steps: int = 1  # of the worker's own


@dataclass(frozen=True)
class Take:
    """Wait for the next lease of data epoch `epoch`."""

    dataset: Dataset
    epoch: int


@dataclass(frozen=True)
class Snapshot:
    """Have a snapshot written; Snapshotted follows. One at a time.

    keep: once it is complete, only so many of the newest beside it stay; 0: all.
    """

    path: str
    keep: int = 0


@dataclass(frozen=True)
class Tell:
    figures: dict[str, float]


@dataclass(frozen=True)
class Leave:
    pass
