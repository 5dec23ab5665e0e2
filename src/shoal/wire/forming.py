"""Messages that open a connection, and those by which a job comes together."""

from __future__ import annotations

from shoal.vocabulary import TableSpec
from shoal.wire.message import Message
from shoal.wire.replica import Placed

# --- opening a connection ---------------------------------------------------------------------


NOTHING = (-1, 0)  # in Declared.used: none of its contributions is


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
    version: int = 0  # above 0 when the server has loaded a snapshot, or has part in the job already
    host: str = ""  # replicas of a shard are put on different ones
    holds: int = -1  # the shard that it follows the log of


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
    placed: Placed
    epoch: int = 1


class Declare(Message, frozen=True, array_like=True, tag=True):
    """group: (worker, incarnation) of all ranks of the process group that it trains in, by part; (): it is alone."""

    worker: int
    incarnation: int
    spec: TableSpec
    group: tuple[tuple[int, int], ...] = ()


class Create(Message, frozen=True, array_like=True, tag=True):
    """Hold this shard. replicated: others hold it, too, or may come to.

    fresh: in its initial state, or that of the snapshot which the server has loaded; otherwise another server gives it.
    """

    epoch: int
    spec: TableSpec
    shard: int
    shards: int
    replicated: bool = False
    fresh: bool = True


class Created(Message, frozen=True, array_like=True, tag=True):
    server: int
    version: int


class Declared(Message, frozen=True, array_like=True, tag=True):
    """The table exists. seed: this worker must push its initial parameters as clock 0.

    used: (incarnation, clock) of the last contribution of an earlier life of this worker that is in the log.
    """

    worker: int
    incarnation: int
    seed: bool
    used: tuple[int, int] = NOTHING


class Attach(Message, frozen=True, array_like=True, tag=True):
    """The worker shares the memory its gradients will lie in; the arena's descriptor goes along.

    From now on Stage need not carry this worker's blocks: they lie in the arena, by tables.layout.
    """

    worker: int
    incarnation: int


class Attached(Message, frozen=True, array_like=True, tag=True):
    """The server shares the memory its parameters lie in; from now on Parameters carry no bytes."""

    server: int
    worker: int
    incarnation: int
