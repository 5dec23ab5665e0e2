"""Messages in the life of a gradient: staged, ready, committed, applied, and parameters back."""

from __future__ import annotations

from shoal.vocabulary import Contributor, Lease, Switch, Weighted
from shoal.wire.message import Message


class Stage(Message, frozen=True, array_like=True, tag=True):
    """Blocks of one contribution; the payload holds them one after the other in wire format."""

    contributor: Contributor
    blocks: tuple[int, ...]


class Staged(Message, frozen=True, array_like=True, tag=True):
    server: int
    contributor: Contributor
    blocks: tuple[int, ...]


class Ready(Message, frozen=True, array_like=True, tag=True):
    """Every block of the contribution is staged.

    samples: how many samples its mean gradient is over (its share when contributions combine);
    multiplier: factor for its gradient (1 / loss scale under GradScaler); void: the gradient is
    not to be used (overflow under GradScaler) though the samples were; whole: every block lies in
    shared memory, and the servers that map it were sent no Stage; blocks: how many it has, by shard;
    version: of the parameters that its gradient was computed on; steps: of the worker's own that its samples were
    taken in.
    """

    contributor: Contributor
    samples: int
    leases: tuple[int, ...]
    rates: tuple[float, ...]  # learning rate per parameter group, for this step
    multiplier: float = 1.0
    void: bool = False
    whole: bool = False
    blocks: tuple[int, ...] = ()
    version: int = 0
    steps: int = 1


class Offer(Message, frozen=True, array_like=True, tag=True):
    """The contribution will be ready once every server has staged its blocks of it.

    Nothing waits for it: Ready follows in any case, once the worker knows that they are staged.
    """

    ready: Ready


class Await(Message, frozen=True, array_like=True, tag=True):
    """Say when so many blocks of the contribution are staged."""

    contributor: Contributor
    blocks: int


class Complete(Message, frozen=True, array_like=True, tag=True):
    """All blocks of the contribution that were awaited are staged."""

    server: int
    contributor: Contributor


class Foresee(Message, frozen=True, array_like=True, tag=True):
    """The next update will most likely combine these first, with these weights: all of them are staged.

    blocks: how many each has in this shard.
    """

    epoch: int
    contributors: tuple[Weighted, ...]
    blocks: tuple[int, ...]


class Commit(Message, frozen=True, array_like=True, tag=True):
    """One entry of the log. Applied by every shard, in order of seq, exactly once.

    kind: "seed" (contributor's blocks become the parameters), "update" (combine, then the rule),
    "cut" (changes no parameter: a consistent cut for a reader, a fence, a snapshot).
    closes: per worker, contributions up to this clock are settled: free them, take no more; ages: of each of them,
    updates since the version that it was computed on.
    fences: per worker, incarnations up to this one may not stage any more.
    stable: every shard has applied the entries up to this one; those after it are kept for a new coordinator.
    since: the last entry that the coordinator of this epoch took over; what an older one sent after it is void.
    release: workers to push the parameters of this version to; parts: those of them that are given a part only
    (placement.owned), as the ranks of a group are.
    switch: another policy is in force from here on.
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
    ages: tuple[int, ...] = ()
    switch: Switch | None = None
    parts: tuple[tuple[int, int, int], ...] = ()  # (worker, part, of so many)


class Norms(Message, frozen=True, array_like=True, tag=True):
    """Partial results that a rule needs over the whole model: (block, values) of one phase."""

    server: int
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
    """checksum: of some of the shard's blocks at this version, the same on every replica; 0: none was taken."""

    server: int
    seq: int
    checksum: int = 0


class Released(Message, frozen=True, array_like=True, tag=True):
    """The worker's clock is settled; it goes on at next_clock with the parameters of version.

    pace: its speed in samples per second, by that of the fastest worker: in (0, 1].
    """

    worker: int
    incarnation: int
    clock: int
    next_clock: int
    version: int
    committed: bool  # False: the contribution came too late for its commit (quorum) and was dropped
    lease: Lease | None = None
    pace: float = 1.0


class Waiting(Message, frozen=True, array_like=True, tag=True):
    """Answers a repeated Ready or LeaseRequest that is not settled yet: what the job waits for."""

    worker: int
    incarnation: int
    reason: str


WHOLE = -1  # in Parameters.increments: the block itself


class Parameters(Message, frozen=True, array_like=True, tag=True):
    """Blocks at one version; the payload holds them one after the other in the worker's dtype.

    Near (stamp above 0) there is no payload: they lie in the server's arena, which bears this stamp as long as they do.
    base above 0: only what has changed since that version comes. increments says by block how many increments of
    its pull codec do, one after the other; 0: it is as it was; WHOLE: the block does.
    still: they do not change before the worker's next contribution; it may compute on them in the arena.
    """

    server: int
    worker: int
    incarnation: int
    version: int
    blocks: tuple[int, ...]
    stamp: int = 0
    base: int = 0
    increments: tuple[int, ...] = ()
    still: bool = False

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(block, how many increments of it, or WHOLE), in the order of the payload."""
        return tuple(zip(self.blocks, self.increments or (WHOLE,) * len(self.blocks), strict=True))


class Copied(Message, frozen=True, array_like=True, tag=True):
    """The worker does not read the parameters of `version` in the server's arena any more."""

    worker: int
    incarnation: int
    version: int


class Pull(Message, frozen=True, array_like=True, tag=True):
    """Parameters of `version` did not arrive, or not on top of what is here: push these blocks, whole."""

    worker: int
    incarnation: int
    version: int
    blocks: tuple[int, ...]


class Moved(Message, frozen=True, array_like=True, tag=True):
    """The server no longer has the version asked for: ask the coordinator for a new cut."""

    server: int
    worker: int
    incarnation: int
    asked: int
    version: int


class Refresh(Message, frozen=True, array_like=True, tag=True):
    """Asks for a new consistent cut in place of one (`version`) that is gone."""

    worker: int
    incarnation: int
    version: int
