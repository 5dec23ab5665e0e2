"""The contract between the machines of core and whoever drives them.

A machine has one method, `step(event, now) -> list[Effect]`. It has no I/O, no clock, no threads
and no chance: runtime/ performs the effects over real sockets, sim/ in a seeded world. `now` is
in milliseconds on the driver's clock.

Numbers never pass through a machine. Blocks of gradients and parameters are named by index in
messages; the driver moves the bytes between its buffers and the transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.core import lending
from shoal.vocabulary import Contributor, Dataset, Lease, TableSpec, Weighted
from shoal.wire import messages as m

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """A message arrived from the node `source`; its payload, if any, lies where admitted."""

    source: str
    message: m.Message


@dataclass(frozen=True)
class Lost:
    """The connection to `peer` broke. It may come back."""

    peer: str


@dataclass(frozen=True)
class Regained:
    """The connection to `peer` is back: what was not answered may be sent again. near: it can share memory."""

    peer: str
    near: bool = False


@dataclass(frozen=True)
class Tick:
    """Time passed: look at deadlines and resends."""


@dataclass(frozen=True)
class Done:
    """A task of an earlier effect ended. result: partials of a Measure; checksum: of some blocks after an Apply of a
    sum, the same on every replica (0: none was taken)."""

    task: Task
    result: tuple[tuple[int, tuple[float, ...]], ...] = ()
    error: str = ""
    checksum: int = 0


@dataclass(frozen=True)
class Updated:
    """The Apply of entry `seq` goes on, and is done with these blocks."""

    seq: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """What was kept at version `seq` is written to this file (error "" when it went well)."""

    seq: int
    file: str
    error: str = ""


@dataclass(frozen=True)
class Recorded:
    """The manifest of an earlier effect was written (error "" when it went well)."""

    version: int
    error: str = ""


@dataclass(frozen=True)
class Retained:
    """What a Retain asked for is written to this file; "": there is nothing, or it could not be."""

    seq: int
    file: str


@dataclass(frozen=True)
class Leads:
    """The registry has let this coordinator lead until then, by its own clock: another one may, afterwards."""

    until: int


@dataclass(frozen=True)
class Deposed:
    """The registry says that this coordinator leads no more."""

    reason: str


# --- tasks: what a shard asks its store to do, one at a time ------------------------------------

UNKNOWN = -1  # a base that nobody knows


@dataclass(frozen=True)
class Compensation:
    """Make up for what has changed since a gradient was computed (compensation.py). base: the version of what its
    worker was given (UNKNOWN: take it as it is); present: of the parameters as they are; needed: of what other workers
    compute on, to be kept. Each version is that of an update."""

    rate: float
    mean_square: float
    base: int
    present: int
    needed: tuple[int, ...] = ()


@dataclass(frozen=True)
class CreateTable:
    """Allocate the blocks of this shard. replicated: and memory for sums of updates; absent: another server has the
    blocks, and will give them one by one."""

    spec: TableSpec
    shard: int
    shards: int
    replicated: bool = False
    absent: bool = False


@dataclass(frozen=True)
class Seed:
    """The contributor's staged blocks become the parameters. summed: they are the sum that is held."""

    seq: int
    contributor: Contributor
    summed: bool = False


@dataclass(frozen=True)
class Measure:
    """Compute the partials of `phase` over the combined gradient of this commit."""

    seq: int
    phase: str
    contributors: tuple[Weighted, ...]
    rates: tuple[float, ...]
    factors: tuple[tuple[str, tuple[float, ...]], ...]  # of earlier phases
    summed: bool = False  # the contributors' sum is the one that is held
    compensation: Compensation | None = None


@dataclass(frozen=True)
class Combine:
    """Add up these contributions, in order, as an Apply or Measure that begins with them would.

    What it finds may be used or not: the bits are the same. held: from here on their sum is what is held, for
    this shard's replicas to apply; else it is a guess, and ends early on Hurry. compensation: of one that is held.
    """

    contributors: tuple[Weighted, ...]
    held: bool = False
    compensation: Compensation | None = None


@dataclass(frozen=True)
class Apply:
    """Combine the contributors in order, scale, and apply the rule: one pass over each block."""

    seq: int
    contributors: tuple[Weighted, ...]
    rates: tuple[float, ...]
    factors: tuple[tuple[str, tuple[float, ...]], ...]
    summed: bool = False  # the contributors' sum is the one that is held, and compensated already
    compensation: Compensation | None = None


@dataclass(frozen=True)
class Copy:
    """Keep the shard's blocks as they are at version `seq`, for a Write under `path`; training waits only for this."""

    seq: int
    path: str


Task = CreateTable | Seed | Combine | Measure | Apply | Copy

# --- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send a message without payload, or Stage with the sender's gradient blocks."""

    to: str
    message: m.Message


@dataclass(frozen=True)
class Publish:
    """Send these blocks' parameters to a worker, as they are at the current version, or at that which an Apply makes
    that is done with them (Updated); base: what has changed since that version is enough, 0: all is needed.

    The driver cuts them into Parameters frames, and must take the bytes before the next task runs, unless
    the policy keeps parameters still: then no task changes them before this worker's next contribution.
    """

    worker: int
    incarnation: int
    version: int
    blocks: tuple[int, ...]
    base: int = 0
    still: bool = False


@dataclass(frozen=True)
class Forward:
    """Send the sum that is held to a backup, as Forward frames. Not while a task runs that could change it.

    in_place: it is in no memory yet; lend the backup the arenas in which the contributions lie.
    """

    to: int
    epoch: int
    number: int
    contributors: tuple[Weighted, ...]
    in_place: bool = False


@dataclass(frozen=True)
class Hold:
    """What came with Forward frames of this number is the sum that is held: of these blocks, the others have none."""

    source: int
    number: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Give:
    """Send these blocks, their states and step counts, as they are now, to a server that is being filled."""

    to: int
    version: int
    updated: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """What came with this Fill is the state of its blocks from here on; or, if not wanted, is forgotten."""

    fill: m.Fill
    wanted: bool = True


@dataclass(frozen=True)
class Run:
    """Run a task on the store and come back with Done, an Apply with Updated before. At most one runs at a time."""

    task: Task


@dataclass(frozen=True)
class Write:
    """Write what the last Copy kept, beside everything else, and come back with Written. One at a time."""

    seq: int
    path: str


@dataclass(frozen=True)
class Hurry:
    """Something waits for the Combine that runs: let it end where it is."""


@dataclass(frozen=True)
class Free:
    """The staged blocks of these contributors are settled; their memory may be reused."""

    contributors: tuple[Contributor, ...]


@dataclass(frozen=True)
class Manifest:
    """Every shard's file of this snapshot is complete: write what makes it one, come back with Recorded.

    accounted: (data epoch, start, stop) of the samples of `dataset` in the log up to this version.
    keep: when that is done, remove all but so many of the newest snapshots beside it; 0: none.
    random: the random state of workers, by rank. lost: receipts of the files of what their codecs have lost.
    """

    path: str
    version: int
    clock: int
    files: tuple[str, ...]
    spec: TableSpec
    dataset: Dataset | None = None
    accounted: tuple[tuple[int, int, int], ...] = ()
    keep: int = 0
    random: tuple[tuple[int, bytes], ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keep:
    """Who holds what has changed: write it to the job's registry, if there is one. Nothing waits for it."""

    placed: m.Placed


@dataclass(frozen=True)
class Begun:
    """The job runs: from here on there is something to lose."""


@dataclass(frozen=True)
class Log:
    """A line for the person who watches."""

    text: str


@dataclass(frozen=True)
class Halt:
    """This node's part is over; reason is "" when it ended well."""

    reason: str


# Effects of the session, for the thread that trains:


@dataclass(frozen=True)
class Dial:
    """Keep connections to these servers, (number, address), and to no others from now on."""

    servers: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Seeding:
    """The table exists; seed: push the initial parameters (clock 0), else wait for Fresh."""

    seed: bool


@dataclass(frozen=True)
class Fresh:
    """All parameters of `version` have arrived; the worker is now at `clock`."""

    version: int
    clock: int
    committed: bool


@dataclass(frozen=True)
class Leased:
    """The answer to a lease request; None: the data epoch is over."""

    lease: Lease | None


@dataclass(frozen=True)
class Retain:
    """Write what this worker's codecs had lost up to the contribution `used` (incarnation, clock), to the snapshot at
    this path, and come back with Retained. It is there now, and not for long: the training thread goes on."""

    seq: int
    path: str
    used: tuple[int, int]


@dataclass(frozen=True)
class Snapshotted:
    path: str
    version: int
    error: str


@dataclass(frozen=True)
class Departed:
    """The coordinator has let this worker go."""


@dataclass(frozen=True)
class Failed:
    """The session cannot go on; kind is the name of an error class in shoal.errors."""

    kind: str
    text: str


Effect = (
    Send
    | Publish
    | Forward
    | Hold
    | Give
    | Load
    | Run
    | Write
    | Hurry
    | Free
    | Manifest
    | Keep
    | Begun
    | Log
    | Halt
    | Dial
    | Seeding
    | Fresh
    | Leased
    | Retain
    | Snapshotted
    | Departed
    | Failed
    | lending.Effect
)


class Machine(Protocol):
    """What a driver drives. event: one of this module's, or a command of the machine's own."""

    def step(self, event: object, now: int) -> Sequence[Effect]: ...
