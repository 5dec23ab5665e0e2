"""A seed means one scenario, wholly: the cluster, the work, each worker's habits, and what goes wrong.

Everything random about the *job* is drawn here, and everything random about a *worker's work*
comes from `work_random`, which depends on the worker and its clock alone. So two runs of one
scenario under different network seeds do the same work, and must give the same log under Sync.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import msgspec

from shoal.config import Job, Limits
from shoal.vocabulary import NO_AGE_MAX, TOKENS, Dataset, PolicySpec, TableSpec, TensorSpec

LIMITS = Limits(
    tick_ms=20,
    resend_ms=60,
    fill_bytes_target=48,
    heartbeat_ms=100,
    lease_ms=700,
    grace_ms=120,
    empty_ms=20_000,
    start_ms=60_000,
    wait_ms=60_000,
    frame_bytes_target=32,
)
GROUPED_CHANCE = 0.2
GROUPS_DRAWN = 18464  # so that there are none at the seeds that planted faults are known by (planted.py)
PATIENT = replace(LIMITS, lease_ms=30_000, grace_ms=30_000)  # nobody is declared dead over a slow link


@dataclass(frozen=True)
class Habits:
    """How one worker behaves."""

    rank: int
    joins_at_ms: int
    compute_ms: tuple[int, int]
    stops_after: int  # leaves once it is past this clock
    void_chance: float  # a step whose gradient is not used (overflow)
    anew_chance: float  # a step whose gradient is computed anew, under the next attempt
    unused_chance: float  # a step that pushes only some tensors
    snapshot_chance: float
    gathers_chance: float  # a step that accumulates over two leases
    near: bool  # shares memory with the servers
    far: bool  # has its contributions offered before it knows that they are staged
    group: tuple[int, ...] = ()  # ranks that train as one worker, itself among them


@dataclass(frozen=True)
class Crash:
    """SIGKILL of a worker. silent: its host vanished, so no connection breaks."""

    at_ms: int
    rank: int
    silent: bool
    restart_after_ms: int | None


@dataclass(frozen=True)
class Loss:
    """SIGKILL of a server (one of those that live, by its position), and the start of another one a while later.

    silent: its host vanished, so no connection breaks. Only while others have all of its shard.
    """

    at_ms: int
    position: int
    silent: bool
    replaced_after_ms: int | None


@dataclass(frozen=True)
class Drain:
    """A server (by its position) is asked to leave, and another one is started for its part."""

    at_ms: int
    position: int


@dataclass(frozen=True)
class Change:
    """Somebody sets another policy while the job runs."""

    at_ms: int
    policy: PolicySpec


@dataclass(frozen=True)
class Cut:
    """No message passes between two nodes for a while; breaks: their connection breaks, too."""

    start_ms: int
    stop_ms: int
    one: str
    other: str
    breaks: bool


@dataclass(frozen=True)
class Freeze:
    """SIGSTOP of a node, and SIGCONT later. for_ms None: never."""

    at_ms: int
    node: str
    for_ms: int | None


@dataclass(frozen=True)
class Fall:
    """SIGKILL of the coordinator, and the start of another one, of the next epoch, a while later."""

    at_ms: int
    back_after_ms: int


@dataclass(frozen=True)
class Outage:
    """The registry answers nobody for a while; alone: only the coordinator that leads is cut off from it."""

    at_ms: int
    for_ms: int
    alone: bool


@dataclass(frozen=True)
class Ousting:
    """The leader's entry is removed from the registry, as by hand: another one leads before the leader knows."""

    at_ms: int


@dataclass(frozen=True)
class Links:
    """What happens to a message on its way."""

    loss: float
    duplication: float
    delay_ms: tuple[int, int]
    late_chance: float  # of a delay ten times as long
    ghost_chance: float  # of a message returning long after


CALM = Links(loss=0.0, duplication=0.0, delay_ms=(1, 4), late_chance=0.0, ghost_chance=0.0)


@dataclass(frozen=True)
class Scenario:
    """One small world. Times are virtual milliseconds."""

    seed: int
    job: Job
    spec: TableSpec
    workers: tuple[Habits, ...]
    clocks: int
    dataset: Dataset | None
    data_epochs: int
    links: Links
    crashes: tuple[Crash, ...]
    cuts: tuple[Cut, ...]
    freezes: tuple[Freeze, ...]
    falls: tuple[Fall, ...]
    losses: tuple[Loss, ...]
    drains: tuple[Drain, ...]
    changes: tuple[Change, ...]
    registered: bool  # a registry says who leads, and coordinators stand by
    outages: tuple[Outage, ...]
    oustings: tuple[Ousting, ...]
    ahead_chance: float  # of a step after which a worker goes on with its own before it takes what comes
    scaled: bool  # a slower worker takes fewer steps in a window (DyLU)
    feeds_back: bool  # gradients travel by a codec whose losses are made good
    near_servers: bool  # backups read sums where the primary wrote them
    heals_at_ms: int
    paired: bool  # Deterministic is checked: run again under another network seed

    @property
    def label(self) -> str:
        policy = self.spec.policy
        match policy.kind:
            case "sync":
                return "sync" if policy.quorum >= 1.0 else "sync with quorum"
            case other:
                return other


def work_random(seed: int, rank: int, clock: int) -> Random:
    """Chance for one worker's one step, the same whatever the network does."""
    return Random((seed * 1_000_003 + rank) * 1_000_003 + clock)


def draw(seed: int) -> Scenario:
    """The scenario that `seed` stands for."""
    rng = Random(seed)
    policy = rng.choice(
        [
            PolicySpec("sync"),
            PolicySpec("sync"),
            PolicySpec("sync", quorum=rng.choice([0.5, 0.6, 0.75])),
            PolicySpec("bounded", staleness=rng.choice([0, 1, 1, 2, 3])),
            PolicySpec("bounded", staleness=rng.choice([1, 2])),
            PolicySpec("async"),
        ]
    )
    if policy.kind != "sync":
        policy = _aged(Random(f"ages of {seed}"), policy)
    policy = _graced(Random(f"graces of {seed}"), _delayed(Random(f"delays of {seed}"), policy))
    paired = policy.kind == "sync" and policy.quorum >= 1.0 and rng.random() < 0.4
    count = rng.choice([1, 2, 2, 3, 3, 4, 5])
    servers = rng.choice([1, 2, 2, 3])
    data = rng.random() < 0.6
    clocks = rng.randint(3, 10)
    started = count if paired or rng.random() < 0.6 else rng.randint(1, count)
    limits = PATIENT if paired else LIMITS
    links = _links(rng)
    replicas = Random(f"replicas of {seed}").choice([1, 1, 2, 2, 2, 3])
    registered = Random(f"registry of {seed}").random() < 0.5
    troubled = registered and links is not CALM
    falls = () if links is CALM else _falls(Random(f"falls of {seed}"))
    spec = _merged(Random(f"merges of {seed}"), _spec(rng, policy), replicas)
    return Scenario(
        seed=seed,
        job=Job(name=f"simulated-{seed}", workers=started, servers=servers, replicas=replicas, limits=limits),
        spec=spec,
        workers=_grouped(
            Random(f"groups of {seed} as {GROUPS_DRAWN}"),
            [_habits(rng, rank, late=rank >= started, clocks=clocks, paired=paired) for rank in range(count)],
            # A coordinator that falls may tear a group; and a rank has not all of a tensor.
            steady=not (paired and (falls or troubled)) and not spec.radial,
        ),
        clocks=clocks,
        dataset=_dataset(rng, count, balance=policy.kind == "bounded") if data else None,
        data_epochs=rng.choice([1, 2, 2]),
        links=links,
        crashes=() if paired or links is CALM else _crashes(rng, count),
        cuts=() if paired or links is CALM else _cuts(rng, count, servers),
        freezes=() if paired or links is CALM else _freezes(Random(f"freezes of {seed}"), count),
        falls=falls,
        losses=_losses(Random(f"losses of {seed}")) if replicas > 1 and not paired else (),
        drains=_drains(Random(f"drains of {seed}")) if replicas > 1 else (),
        changes=() if paired else _changes(Random(f"policies of {seed}"), Random(f"other policies of {seed}")),
        registered=registered,
        outages=_outages(Random(f"outages of {seed}")) if troubled else (),
        oustings=_oustings(Random(f"oustings of {seed}")) if troubled else (),
        ahead_chance=Random(f"own steps of {seed}").choice([0.0, 0.0, 0.5]),
        scaled=Random(f"paces of {seed}").random() < 0.3,
        feeds_back=Random(f"codecs of {seed}").random() < 0.5,
        near_servers=Random(f"hosts of {seed}").random() < 0.5,
        heals_at_ms=rng.randint(800, 2400),
        paired=paired,
    )


def _aged(rng: Random, policy: PolicySpec) -> PolicySpec:
    """The same, and perhaps it weighs contributions by their age, or drops old ones."""
    age_max = rng.choice([NO_AGE_MAX, NO_AGE_MAX, 0, 1, 2, 4])
    return msgspec.structs.replace(policy, weight=rng.choice(["equal", "inverse"]), age_max=age_max)


def _delayed(rng: Random, policy: PolicySpec) -> PolicySpec:
    """The same, and perhaps servers make up for what has changed since a gradient was computed."""
    if policy.kind == "sync" or rng.random() < 0.6:
        return policy
    return msgspec.structs.replace(policy, weight="delay", rate=rng.choice([0.5, 2.0]), mean_square=0.95)


def _graced(rng: Random, policy: PolicySpec) -> PolicySpec:
    """The same, and perhaps with a grace for who is late; or, in place of one by one, together without a clock."""
    grace = rng.choice([0.02, 0.1, 0.4])
    if policy.kind == "sync" and policy.quorum < 1.0 and rng.random() < 0.5:
        return msgspec.structs.replace(policy, grace=grace)
    if policy.kind == "async" and rng.random() < 0.4:
        return PolicySpec("decoupled", quorum=rng.choice([1, 1, 2, 3]), grace=rng.choice([0.0, grace]))
    return policy


def _merged(rng: Random, spec: TableSpec, replicas: int) -> TableSpec:
    """The same, and perhaps it averages lengths and directions apart."""
    if replicas > 1 or rng.random() < 0.8:
        return spec
    count = len(spec.tensors)
    return msgspec.structs.replace(spec, radial=tuple(sorted(rng.sample(range(count), rng.randint(1, count)))))


def _links(rng: Random) -> Links:
    if rng.random() < 0.1:
        return CALM
    return Links(
        loss=rng.choice([0.0, 0.02, 0.05, 0.15]),
        duplication=rng.choice([0.0, 0.02, 0.1]),
        delay_ms=rng.choice([(1, 4), (1, 20), (5, 40)]),
        late_chance=rng.choice([0.0, 0.02, 0.08]),
        ghost_chance=rng.choice([0.0, 0.01, 0.03]),
    )


def _spec(rng: Random, policy: PolicySpec) -> TableSpec:
    """A table of a few tiny tensors, some of several blocks; LAMB and clip_norm need extra phases."""
    rule, settings = rng.choice(
        [
            ("sgd", (("lr", 0.1),)),
            ("adamw", (("lr", 0.001),)),
            ("lamb", (("lr", 0.001),)),
        ]
    )
    groups = rng.choice([1, 1, 2])
    tensors = tuple(
        TensorSpec(f"tensor{index}", (rng.randint(1, 10),), "float32", rng.randrange(groups) if index else 0)
        for index in range(rng.randint(1, 4))
    )
    return TableSpec(
        tensors=tensors,
        rule=rule,
        groups=(settings,) * (1 + max(tensor.group for tensor in tensors)),
        policy=policy,
        clip_norm=rng.choice([None, 1.0]),
        reduction=rng.choice(["mean", "mean", "sum"]) if policy.kind != "decoupled" else TOKENS,
        block_elements_max=4,
    )


def _habits(rng: Random, rank: int, late: bool, clocks: int, paired: bool) -> Habits:
    low = rng.choice([1, 10, 30, 120])
    return Habits(
        rank=rank,
        joins_at_ms=rng.randint(100, 800) if late else rng.randint(0, 60),
        compute_ms=(low, 2 * low + 5),
        stops_after=rng.randint(1, clocks) if not paired and rank and rng.random() < 0.2 else clocks,
        void_chance=rng.choice([0.0, 0.0, 0.2]),
        anew_chance=rng.choice([0.0, 0.0, 0.2]),
        unused_chance=rng.choice([0.0, 0.0, 0.3]),
        snapshot_chance=rng.choice([0.0, 0.0, 0.1]),
        gathers_chance=rng.choice([0.0, 0.0, 0.2, 0.5]) * (not paired),
        near=Random(hash((low, rank, clocks, rng.random()))).random() < 0.5,
        far=Random(hash((rank, clocks, low))).random() < 0.4,
    )


def _grouped(rng: Random, workers: list[Habits], steady: bool) -> tuple[Habits, ...]:
    """Perhaps two or three of them, or two pairs, train as one worker each: what they do they do together, and each
    sends its part over a connection of its own."""
    free = [habits.rank for habits in workers]
    grouped = rng.random() < GROUPED_CHANCE and steady
    sizes: tuple[int, ...] = rng.choice([(2,), (2, 2), (3,)])
    for size in sizes if grouped else ():
        if len(free) < size:
            continue
        group = tuple(rng.sample(free, size))
        free = [rank for rank in free if rank not in group]
        first = workers[group[0]]
        for rank in group:
            alike = replace(first, rank=rank, compute_ms=workers[rank].compute_ms, far=workers[rank].far)
            workers[rank] = replace(alike, joins_at_ms=workers[rank].joins_at_ms, near=False, group=group)
    return tuple(workers)


def _dataset(rng: Random, workers: int, balance: bool) -> Dataset:
    batch = rng.randint(1, 4)
    return Dataset(
        size=rng.randint(workers, workers * batch * 5), batch=batch, seed=rng.randint(0, 99), balance=balance
    )


def _crashes(rng: Random, workers: int) -> tuple[Crash, ...]:
    return tuple(
        Crash(
            at_ms=rng.randint(0, 1600),
            rank=rng.randrange(workers),
            silent=rng.random() < 0.3,
            restart_after_ms=rng.choice([None, 5, 50, 400]),
        )
        for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4]))
    )


def _cuts(rng: Random, workers: int, servers: int) -> tuple[Cut, ...]:
    nodes = [f"worker/{rank}" for rank in range(workers)]
    peers = ["coordinator", *(f"server/{index}" for index in range(servers))]
    cuts: list[Cut] = []
    for _ in range(rng.choice([0, 0, 1, 2])):
        start = rng.randint(0, 1500)
        one = rng.choice(nodes + peers[1:])
        if one.startswith("server"):  # a server that is gone for long ends a job without replicas
            cuts.append(Cut(start, start + rng.choice([20, 300]), one, "coordinator", breaks=False))
            continue
        cuts.append(
            Cut(start, start + rng.choice([1, 60, 300, 900]), one, rng.choice(peers), breaks=rng.random() < 0.5)
        )
    return tuple(cuts)


def _falls(rng: Random) -> tuple[Fall, ...]:
    count = rng.choice([0, 0, 0, 1, 1, 2, 3])
    return tuple(Fall(rng.randint(100, 2000), rng.choice([5, 30, 150])) for _ in range(count))


def _losses(rng: Random) -> tuple[Loss, ...]:
    return tuple(
        Loss(rng.randint(100, 2000), rng.randrange(12), rng.random() < 0.3, rng.choice([None, 20, 100, 400]))
        for _ in range(rng.choice([0, 1, 1, 2, 3]))
    )


def _drains(rng: Random) -> tuple[Drain, ...]:
    return tuple(Drain(rng.randint(100, 1500), rng.randrange(12)) for _ in range(rng.choice([0, 0, 0, 1, 2])))


def _changes(rng: Random, further: Random) -> tuple[Change, ...]:
    """Each with a chance to be asked for at about the same time as another one, or as the same again."""
    policies = [
        PolicySpec("sync"),
        PolicySpec("sync", quorum=0.5),
        _aged(rng, PolicySpec("bounded", staleness=rng.choice([0, 1, 2]))),
        _aged(rng, PolicySpec("async")),
    ]
    policies = [_graced(further, _delayed(further, policy)) for policy in policies]
    count = rng.choice([0, 0, 0, 0, 1, 1, 2, 4])
    return tuple(Change(rng.randint(100, 1800), rng.choice(policies)) for _ in range(count))


def _outages(rng: Random) -> tuple[Outage, ...]:
    """Some end before the leader's lease does: then nobody notices."""
    return tuple(
        Outage(rng.randint(100, 1800), rng.choice([60, 120, 250, 450]), rng.random() < 0.5)
        for _ in range(rng.choice([0, 1, 1, 2]))
    )


def _oustings(rng: Random) -> tuple[Ousting, ...]:
    return tuple(Ousting(rng.randint(100, 1800)) for _ in range(rng.choice([0, 0, 1, 1, 2])))


def _freezes(rng: Random, workers: int) -> tuple[Freeze, ...]:
    freezes: list[Freeze] = []
    if rng.random() < 0.25:
        freezes.append(Freeze(rng.randint(100, 1500), "coordinator", rng.choice([300, 620, 640, None])))
    if rng.random() < 0.25:
        node = f"worker/{rng.randrange(workers)}"
        freezes.append(Freeze(rng.randint(100, 1200), node, rng.choice([200, 650, 1200])))
    return tuple(freezes)
