"""Every message of the protocol. Frozen; told apart by a tag; nothing is ever unpickled.

Who sends what to whom, in the order of a job's life:

    any      -> any          Hello, Accepted | Refused            (the first frames of a connection)
    server   -> coordinator  Register            answered by  Registered
    worker   -> coordinator  Join                answered by  Welcome
    worker   -> coordinator  Declare             answered by  Declared | Refused
    coord.   -> server       Create              answered by  Created
    worker   -> server       Attach + memory     answered by  Attached + memory    (on one host)
    worker   -> server       Stage + bytes       answered by  Staged | Refused
    worker   -> coordinator  Ready               answered by  Released | Waiting
    worker   -> coordinator  Offer               (a Ready ahead of its time: far workers save a round trip)
    coord.   -> server       Await               answered by  Complete
    coord.   -> server       Foresee             (a hint)
    coord.   -> server       Commit              answered by  Applied (and Norms, which Factors answers)
    server   -> worker       Parameters + bytes  (where they lie in shared memory: answered by Copied)
    worker   -> server       Pull                answered by  Parameters | Moved
    worker   -> coordinator  Refresh             answered by  Released
    worker   -> coordinator  LeaseRequest        answered by  Granted | Waiting
    worker   -> coordinator  SnapshotRequest     answered by  SnapshotDone (once every server sent Saved)
    worker   -> coordinator  Leave               answered by  Left
    any      -> coordinator  Heartbeat           answered by  Alive (members only)
    any      -> coordinator  Report;  StatusRequest answered by Status
    coord.   -> server       Recover             answered by  Recovered            (a new one takes over)
    coord.   -> worker       Introduce           answered by  Resume
    worker   -> coordinator  Resume              answered by  Resumed | Fenced
    coord.   -> any          Fenced, Stop

Every request may be repeated: the answer is the same and nothing happens twice.
"""

from __future__ import annotations

import msgspec

from shoal.vocabulary import Block, Contributor, Dataset, Lease, TableSpec, Weighted


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; the class name is the tag."""


# --- opening a connection ---------------------------------------------------------------------


class Hello(Message, frozen=True, array_like=True, tag=True):
    protocol: int
    job: str
    token: str
    name: str  # the sender's node name; "" for a visitor that only asks for Status
    link: int = 0  # a number of the sender's choice, the same for a connection and its further streams
    stream: int = 0  # above 0: a further stream of the connection that said Hello with this link


class Accepted(Message, frozen=True, array_like=True, tag=True):
    name: str


class Refused(Message, frozen=True, array_like=True, tag=True):
    what: str  # the tag of the refused message
    reason: str


# --- forming the job --------------------------------------------------------------------------


class Register(Message, frozen=True, array_like=True, tag=True):
    server: int
    address: str
    pid: int
    version: int = 0  # above 0 when the server has loaded a snapshot


class Registered(Message, frozen=True, array_like=True, tag=True):
    epoch: int


class Join(Message, frozen=True, array_like=True, tag=True):
    rank: int
    nonce: int  # tells a new life of the worker from a repeated request
    pid: int


class Welcome(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int
    nonce: int
    servers: tuple[str, ...]  # addresses, by server index; empty while servers are missing
    epoch: int = 1


class Declare(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int
    spec: TableSpec


class Create(Message, frozen=True, array_like=True, tag=True):
    epoch: int
    spec: TableSpec
    shard: int
    shards: int


class Created(Message, frozen=True, array_like=True, tag=True):
    shard: int
    version: int


class Declared(Message, frozen=True, array_like=True, tag=True):
    """The table exists. seed: this worker must push its initial parameters as clock 0."""

    worker: int
    incarnation: int
    seed: bool


class Attach(Message, frozen=True, array_like=True, tag=True):
    """The worker shares the memory its gradients will lie in; the arena's descriptor goes along.

    From now on Stage need not carry this worker's blocks: they lie in the arena, by tables.layout.
    """

    worker: int
    incarnation: int


class Attached(Message, frozen=True, array_like=True, tag=True):
    """The shard shares the memory its parameters lie in; from now on Parameters carry no bytes."""

    shard: int
    worker: int
    incarnation: int


# --- the life of a gradient -------------------------------------------------------------------


class Stage(Message, frozen=True, array_like=True, tag=True):
    """Blocks of one contribution; the payload holds them one after the other in wire format."""

    contributor: Contributor
    blocks: tuple[int, ...]


class Staged(Message, frozen=True, array_like=True, tag=True):
    shard: int
    contributor: Contributor
    blocks: tuple[int, ...]


class Ready(Message, frozen=True, array_like=True, tag=True):
    """Every block of the contribution is staged.

    samples: how many samples its mean gradient is over (its share when contributions combine);
    multiplier: factor for its gradient (1 / loss scale under GradScaler); void: the gradient is
    not to be used (overflow under GradScaler) though the samples were; whole: every block lies in
    shared memory, and the servers that map it were sent no Stage.
    """

    contributor: Contributor
    samples: int
    leases: tuple[int, ...]
    rates: tuple[float, ...]  # learning rate per parameter group, for this step
    multiplier: float = 1.0
    void: bool = False
    whole: bool = False


class Offer(Message, frozen=True, array_like=True, tag=True):
    """The contribution will be ready once every server has staged so many blocks of it (by server index).

    Nothing waits for it: Ready follows in any case, once the worker knows that they are staged.
    """

    ready: Ready
    blocks: tuple[int, ...]


class Await(Message, frozen=True, array_like=True, tag=True):
    """Say when so many blocks of the contribution are staged."""

    contributor: Contributor
    blocks: int


class Complete(Message, frozen=True, array_like=True, tag=True):
    """All blocks of the contribution that were awaited are staged."""

    shard: int
    contributor: Contributor


class Foresee(Message, frozen=True, array_like=True, tag=True):
    """The next update will most likely combine these first, with these weights: all of them are staged."""

    epoch: int
    contributors: tuple[Weighted, ...]


class Commit(Message, frozen=True, array_like=True, tag=True):
    """One entry of the log. Applied by every shard, in order of seq, exactly once.

    kind: "seed" (contributor's blocks become the parameters), "update" (combine, then the rule),
    "cut" (changes no parameter: a consistent cut for a reader, a fence, a snapshot).
    closes: per worker, contributions up to this clock are settled: free them, take no more.
    fences: per worker, incarnations up to this one may not stage any more.
    stable: every shard has applied the entries up to this one; those after it are kept for a new coordinator.
    since: the last entry that the coordinator of this epoch took over; what an older one sent after it is void.
    release: workers to push the parameters of this version to.
    """

    epoch: int
    seq: int
    kind: str
    contributors: tuple[Weighted, ...] = ()
    rates: tuple[float, ...] = ()
    closes: tuple[tuple[int, int, int], ...] = ()  # (worker, incarnation, clock)
    fences: tuple[tuple[int, int], ...] = ()  # (worker, incarnation)
    release: tuple[tuple[int, int], ...] = ()  # (worker, incarnation)
    samples: tuple[tuple[int, int, int], ...] = ()  # (data epoch, start, stop) accounted for
    save: str = ""  # directory of a snapshot of this version
    stable: int = 0
    since: int = 0


class Norms(Message, frozen=True, array_like=True, tag=True):
    """Partial results that a rule needs over the whole model: (block, values) of one phase."""

    shard: int
    seq: int
    phase: str
    partials: tuple[tuple[int, tuple[float, ...]], ...]


class Factors(Message, frozen=True, array_like=True, tag=True):
    """What the partials of all shards add up to: one factor, or one per tensor."""

    epoch: int
    seq: int
    phase: str
    values: tuple[float, ...]


class Applied(Message, frozen=True, array_like=True, tag=True):
    shard: int
    seq: int


class Released(Message, frozen=True, array_like=True, tag=True):
    """The worker's clock is settled; it goes on at next_clock with the parameters of version."""

    worker: int
    incarnation: int
    clock: int
    next_clock: int
    version: int
    committed: bool  # False: the contribution came too late for its commit (quorum) and was dropped
    lease: Lease | None = None


class Waiting(Message, frozen=True, array_like=True, tag=True):
    """Answers a repeated Ready or LeaseRequest that is not settled yet: what the job waits for."""

    worker: int
    incarnation: int
    reason: str


class Parameters(Message, frozen=True, array_like=True, tag=True):
    """Blocks at one version; the payload holds them one after the other in the worker's dtype.

    Without payload they lie in the shard's arena, which bears this stamp as long as they do.
    """

    shard: int
    worker: int
    incarnation: int
    version: int
    blocks: tuple[int, ...]
    stamp: int = 0


class Copied(Message, frozen=True, array_like=True, tag=True):
    """The worker does not read the parameters of `version` in the shard's arena any more."""

    worker: int
    incarnation: int
    version: int


class Pull(Message, frozen=True, array_like=True, tag=True):
    """Parameters of `version` did not arrive: push these blocks again."""

    worker: int
    incarnation: int
    version: int
    blocks: tuple[int, ...]


class Moved(Message, frozen=True, array_like=True, tag=True):
    """The shard no longer has the version asked for: ask the coordinator for a new cut."""

    shard: int
    worker: int
    incarnation: int
    asked: int
    version: int


class Refresh(Message, frozen=True, array_like=True, tag=True):
    """Asks for a new consistent cut in place of one (`version`) that is gone."""

    worker: int
    incarnation: int
    version: int


# --- samples ----------------------------------------------------------------------------------


class LeaseRequest(Message, frozen=True, array_like=True, tag=True):
    """Asks for a lease of data epoch `epoch`; number grows with every new request of this worker."""

    worker: int
    incarnation: int
    epoch: int
    number: int
    dataset: Dataset


class Granted(Message, frozen=True, array_like=True, tag=True):
    """Answers LeaseRequest; lease None: the data epoch is over, every sample is committed.

    The worker goes on at `clock`, with parameters of `version` or newer.
    """

    worker: int
    incarnation: int
    epoch: int
    number: int
    lease: Lease | None
    clock: int
    version: int


# --- when a new coordinator takes over ------------------------------------------------------------


class Recover(Message, frozen=True, array_like=True, tag=True):
    """A coordinator of a new epoch asks what a shard knows. From here on the shard follows no older one."""

    epoch: int


class Recovered(Message, frozen=True, array_like=True, tag=True):
    """What a shard knows of the log: the summary of all that it has applied, and the entries that others may lack.

    version: entries applied; updated: the last of them that changed parameters; accounted: samples by data epoch.
    """

    shard: int
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


class Resumed(Message, frozen=True, array_like=True, tag=True):
    """The worker is a member under this epoch: what it asked and was not given it must ask again."""

    worker: int
    incarnation: int
    epoch: int


# --- snapshots, leaving, watching -------------------------------------------------------------


class SnapshotRequest(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int
    number: int  # grows, so that a repeated request is told from a new one
    path: str


class Saved(Message, frozen=True, array_like=True, tag=True):
    shard: int
    seq: int
    file: str
    error: str = ""


class SnapshotDone(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int
    number: int
    path: str
    version: int
    error: str = ""


class Leave(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int


class Left(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int


class Fenced(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int
    reason: str


class Stop(Message, frozen=True, array_like=True, tag=True):
    """The job ends for everyone; reason is "" when it ended well."""

    reason: str


class Heartbeat(Message, frozen=True, array_like=True, tag=True):
    """A sign of life. received and sent are bytes since the node started."""

    name: str
    incarnation: int
    received: int
    sent: int
    version: int = 0


class Alive(Message, frozen=True, array_like=True, tag=True):
    """Answers a member's Heartbeat: so it knows that the coordinator lives, too."""

    pid: int


class Report(Message, frozen=True, array_like=True, tag=True):
    """Figures a worker wants shown: loss, tokens, anything numeric."""

    worker: int
    incarnation: int
    figures: dict[str, float]


class StatusRequest(Message, frozen=True, array_like=True, tag=True):
    pass


class MemberStatus(msgspec.Struct, frozen=True, array_like=True):
    """One member of a job. received and sent are bytes; staleness (workers only) counts the commits
    that changed parameters since the version the worker computes on."""

    name: str
    state: str
    clock: int
    version: int
    pid: int = 0
    incarnation: int = 0
    staleness: int = 0
    samples: int = 0  # committed
    received: int = 0
    sent: int = 0
    silent_ms: int = 0
    figures: dict[str, float] = {}


class Status(Message, frozen=True, array_like=True, tag=True):
    job: str
    phase: str
    waiting: str  # what the job waits for, in words; "" when nothing
    policy: str
    epoch: int
    version: int
    members: tuple[MemberStatus, ...]
    data_epoch: int
    samples_committed: int
    samples: int


Any = (
    Hello | Accepted | Refused | Register | Registered | Join | Welcome | Declare | Create | Created | Declared
    | Attach | Attached | Stage | Staged | Ready | Offer | Await | Complete | Foresee | Commit | Norms | Factors
    | Applied | Released | Waiting | Parameters | Copied | Pull | Moved | Refresh | LeaseRequest | Granted
    | SnapshotRequest | Saved | SnapshotDone | Leave | Left | Fenced | Stop | Heartbeat | Alive | Report
    | StatusRequest | Status | Recover | Recovered | Introduce | Resume | Resumed
)  # fmt: skip

__all__ = ["Any", "Block", "Message"]
