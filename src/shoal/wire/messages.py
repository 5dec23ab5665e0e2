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
    coord.   -> any          Placed              (which servers hold which shard)
    coord.   -> server       Prepare             answered by  Held     (with replicas, before an update's Commit)
    server   -> server       Forward + bytes     answered by  Held, to the coordinator
    server   -> server       Share + memory      (on one host, before a Forward in place)
    server   -> server       Fill + bytes        answered by  Filled; Whole, to the coordinator, once it is
    coord.   -> server       Commit              answered by  Applied (and Norms, which Factors answers)
    server   -> worker       Parameters + bytes  (where they lie in shared memory: answered by Copied)
    worker   -> server       Pull                answered by  Parameters | Moved
    worker   -> coordinator  Refresh             answered by  Released
    worker   -> coordinator  LeaseRequest        answered by  Granted | Waiting
    worker   -> coordinator  SnapshotRequest     answered by  SnapshotDone (once every server sent Saved)
    coord.   -> worker       Recall              answered by  Recalled             (for a snapshot)
    worker   -> coordinator  Leave               answered by  Left
    any      -> coordinator  Heartbeat           answered by  Alive (members only)
    any      -> coordinator  Report;  StatusRequest answered by Status;  Drain answered by Draining
    any      -> coordinator  SetPolicy           answered by  PolicySet, at once
    coord.   -> server       Recover             answered by  Recovered            (a new one takes over)
    coord.   -> worker       Introduce           answered by  Resume
    worker   -> coordinator  Resume              answered by  Resumed | Fenced
    coord.   -> any          Fenced, Stop

Every request may be repeated: the answer is the same and nothing happens twice. What a launcher and the members of a
fleet say to each other is in fleet.py, and no business of a job's nodes: these ignore it.
"""

from __future__ import annotations

import msgspec

from shoal.vocabulary import Block, Dataset, Lease, PolicySpec
from shoal.wire import fleet
from shoal.wire.forming import (
    NOTHING,
    Accepted,
    Attach,
    Attached,
    Create,
    Created,
    Declare,
    Declared,
    Hello,
    Join,
    Refused,
    Register,
    Registered,
    Welcome,
)
from shoal.wire.gradient import (
    Applied,
    Await,
    Commit,
    Complete,
    Copied,
    Factors,
    Foresee,
    Moved,
    Norms,
    Offer,
    Parameters,
    Pull,
    Ready,
    Refresh,
    Released,
    Stage,
    Staged,
    Waiting,
)
from shoal.wire.message import Message
from shoal.wire.replica import Drain, Draining, Fill, Filled, Forward, Held, Placed, Prepare, Share, Whole
from shoal.wire.succession import Introduce, Recover, Recovered, Resume, Resumed

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


# --- snapshots, leaving, watching -------------------------------------------------------------


class SnapshotRequest(Message, frozen=True, array_like=True, tag=True):
    worker: int
    incarnation: int
    number: int  # grows, so that a repeated request is told from a new one
    path: str
    keep: int = 0  # once it is complete, only so many of the newest beside it stay; 0: all


class Recall(Message, frozen=True, array_like=True, tag=True):
    """Asks for a worker's random state as it was when the worker began to compute `clock`; 0: the newest. What its
    codecs had lost up to the contribution `used` (incarnation, clock), it writes itself.

    seq: of the snapshot's entry. path: of the snapshot. used: the worker's last contribution in the log up to there.
    """

    worker: int
    incarnation: int
    seq: int
    clock: int
    path: str = ""
    used: tuple[int, int] = NOTHING


class Recalled(Message, frozen=True, array_like=True, tag=True):
    """Answers Recall. state: the adapter's own; empty if the worker kept none. file: a receipt of the file that it has
    written; "" if there is none."""

    worker: int
    incarnation: int
    seq: int
    state: bytes
    file: str = ""


class Saved(Message, frozen=True, array_like=True, tag=True):
    server: int
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
    view: int = 0  # the last Placed that the sender knows


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


class SetPolicy(Message, frozen=True, array_like=True, tag=True):
    """Have this policy take the place of the one in force."""

    policy: PolicySpec


class PolicySet(Message, frozen=True, array_like=True, tag=True):
    """Answers SetPolicy: policy is in force since the entry `since` (0: from the beginning); wanted: the one that takes
    over once workers have come to rest. warning: of what is known to harm; error: why nothing comes of the request."""

    policy: PolicySpec | None
    since: int = 0
    wanted: PolicySpec | None = None
    warning: str = ""
    error: str = ""


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
    """buried: (worker, process) of those whose last life was declared dead.

    ages: (age, how many) of the contributions that were combined, by how many updates came between the version each
    was computed on and its own; dropped: how many were settled without their gradient, too late or too old.
    """

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
    buried: tuple[tuple[int, int], ...] = ()
    ages: tuple[tuple[int, int], ...] = ()
    dropped: int = 0


Any = (
    Hello | Accepted | Refused | Register | Registered | Join | Welcome | Declare | Create | Created | Declared
    | Attach | Attached | Stage | Staged | Ready | Offer | Await | Complete | Foresee | Commit | Norms | Factors
    | Applied | Released | Waiting | Parameters | Copied | Pull | Moved | Refresh | LeaseRequest | Granted
    | SnapshotRequest | Recall | Recalled | Saved | SnapshotDone | Leave | Left | Fenced | Stop | Heartbeat | Alive
    | Report | StatusRequest | Status | Recover | Recovered | Introduce | Resume | Resumed | Placed | Prepare | Forward
    | Share | Held | Fill | Filled | Whole | Drain | Draining | SetPolicy | PolicySet | fleet.Any
)  # fmt: skip

__all__ = [
    "Accepted", "Alive", "Any", "Applied", "Attach", "Attached", "Await", "Block", "Commit", "Complete", "Copied",
    "Create", "Created", "Declare", "Declared", "Drain", "Draining", "Factors", "Fenced", "Fill", "Filled",
    "Foresee", "Forward", "Granted", "Heartbeat", "Held", "Hello", "Introduce", "Join", "LeaseRequest", "Leave",
    "Left", "MemberStatus", "Message", "Moved", "Norms", "Offer", "Parameters", "Placed", "PolicySet", "Prepare",
    "Pull", "Ready", "Recall", "Recalled", "Recover", "Recovered", "Refresh", "Refused", "Register", "Registered",
    "Released", "Report", "Resume", "Resumed", "Saved", "SetPolicy", "Share", "SnapshotDone", "SnapshotRequest",
    "Stage", "Staged", "Status", "StatusRequest", "Stop", "Waiting", "Welcome", "Whole",
]  # fmt: skip
