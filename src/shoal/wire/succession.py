"""Messages by which a new coordinator takes over from one that fell."""

from __future__ import annotations

from shoal.vocabulary import Dataset, Lease, Switch, TableSpec
from shoal.wire.gradient import Commit
from shoal.wire.message import Message
from shoal.wire.replica import Placed


class Recover(Message, frozen=True, array_like=True, tag=True):
    """A coordinator of a new epoch asks what a shard knows. From here on the shard follows no older one."""

    epoch: int


class Recovered(Message, frozen=True, array_like=True, tag=True):
    """What a shard knows of the log: the summary of all that it has applied, and the entries that others may lack.

    version: entries applied; updated: the last of them that changed parameters; accounted: samples by data epoch;
    updates: the last entries that changed parameters; ages: (age, how many) of all contributions that were combined.
    """

    server: int
    epoch: int
    version: int
    updated: int
    spec: TableSpec | None
    entries: tuple[Commit, ...]  # applied or not, in order
    closed: tuple[tuple[int, int, int], ...]  # (worker, incarnation, clock) settled
    used: tuple[tuple[int, int, int], ...]  # (worker, incarnation, clock) of the last contribution that was combined
    fenced: tuple[tuple[int, int], ...]  # (worker, incarnation)
    released: tuple[tuple[int, int], ...]  # (worker, incarnation) that were given parameters
    accounted: tuple[tuple[int, int, int], ...]  # (data epoch, start, stop), merged
    factors: tuple[tuple[int, str, tuple[float, ...]], ...] = ()  # (seq, phase, values) of those entries, if known
    placed: Placed | None = None  # the last that it was told
    whole: bool = True  # it has all blocks of its shard
    updates: tuple[int, ...] = ()
    ages: tuple[tuple[int, int], ...] = ()
    dropped: int = 0  # contributions settled without their gradient
    switch: Switch | None = None  # the last one, and the entry that brought it
    switched: int = 0


class Introduce(Message, frozen=True, array_like=True, tag=True):
    """The coordinator of this epoch does not know the worker yet: say how far you are."""

    worker: int
    incarnation: int
    epoch: int


class Resume(Message, frozen=True, array_like=True, tag=True):
    """A worker's side of its membership: all that a new coordinator cannot know from the shards.

    leases: samples it holds that are not committed, as far as it knows; dataset: None without any so far;
    number: of its last LeaseRequest; ended: the last data epoch it was told is over; void: the contribution it
    waits for has no gradient to use; waiting: for samples.
    """

    worker: int
    incarnation: int
    nonce: int
    pid: int
    clock: int
    version: int  # 0: it has no parameters yet
    leases: tuple[Lease, ...] = ()
    dataset: Dataset | None = None
    data_epoch: int = 0
    number: int = 0
    ended: int = -1
    void: bool = False
    waiting: bool = False
    group: tuple[tuple[int, int], ...] = ()  # as in Declare


class Resumed(Message, frozen=True, array_like=True, tag=True):
    """The worker is a member under this epoch: what it asked and was not given it must ask again."""

    worker: int
    incarnation: int
    epoch: int
