"""The nouns every room of Shoal shares. Values only: frozen, hashable, encodable by msgspec.

Words are the field's own (server, worker, push, pull, staleness, shard, clock) and those of
Shoal's design: block, contribution, commit, version.
"""

from __future__ import annotations

import math

import msgspec

# Names of nodes, as they appear in messages, errors and logs.
COORDINATOR = "coordinator"
JOB_DEFAULT = "shoal"

SLOTS = 4096  # blocks map to slots, slots to shards: a snapshot keeps its meaning on any server count

NO_AGE_MAX = -1  # contributions of any age are taken

MEAN, SUM, TOKENS = "mean", "sum", "tokens"  # how contributions combine: TableSpec.reduction

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def server_name(index: int) -> str:
    """The node name of server `index` (0-based)."""
    return f"server/{index}"


def worker_name(worker: int) -> str:
    """The node name of worker `worker` (0-based rank)."""
    return f"worker/{worker}"


def node_number(name: str) -> int:
    """The number in a node's name, such as 3 in "worker/3"; -1 if there is none."""
    number = name.rpartition("/")[2]
    return int(number) if number.isdecimal() else -1


class Value(msgspec.Struct, frozen=True, array_like=True):
    """Base of everything that is compared, hashed and sent."""


class TensorSpec(Value, frozen=True, array_like=True):
    """One parameter tensor of the model, as the worker sees it.

    dtype is that of the worker's parameter on the wire ("float32", "bfloat16" or "float16"); the servers hold
    float32 masters whatever it is. push: the codec of its gradients; "": as wide as the parameter. pull: the codec of
    what changes in it, on the way back; "": it comes as it is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    push: str = ""
    pull: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class TableSpec(Value, frozen=True, array_like=True):
    """A dense table: the model's tensors, and the rule that updates them.

    groups holds one sequence of (setting, value) per parameter group (the learning rate among them is
    only the first one: later ones come with each contribution). reduction says how contributions
    combine: "mean" weighs each by its share of the commit's samples, "sum" adds them up, and "tokens" weighs each by
    samples**2 / steps, block by block, among those that have anything for it. radial: tensors of which lengths and
    directions are averaged apart (phases.MERGE).
    """

    tensors: tuple[TensorSpec, ...]
    rule: str
    groups: tuple[tuple[tuple[str, float], ...], ...]
    policy: PolicySpec
    clip_norm: float | None = None
    reduction: str = "mean"
    block_elements_max: int = 1 << 20
    radial: tuple[int, ...] = ()


class PolicySpec(Value, frozen=True, array_like=True):
    """A consistency policy as data; policy.from_spec makes the object that decides."""

    kind: str  # "sync" | "bounded" | "async" | "decoupled"
    quorum: float = 1.0
    staleness: int = 0
    weight: str = "equal"  # "equal" | "inverse" | "delay"
    age_max: int = NO_AGE_MAX
    rate: float = 0.0  # of "delay"
    mean_square: float = 0.0
    grace: float = 0.0  # seconds


class Switch(Value, frozen=True, array_like=True):
    """From an entry of the log on this policy is in force; all workers that were at rest go on at `clock` (0: each at
    its own)."""

    policy: PolicySpec
    clock: int = 0


class Block(Value, frozen=True, array_like=True):
    """A fixed slice of one tensor: elements start..stop (exclusive) of the flattened tensor."""

    index: int
    tensor: int
    start: int
    stop: int
    slot: int

    @property
    def elements(self) -> int:
        return self.stop - self.start


class Contributor(Value, frozen=True, array_like=True, order=True):
    """The identity of one contribution.

    incarnation tells two lives of one worker apart and grows over the whole job; attempt grows
    when a worker computes the same clock's gradient anew (accumulation that outran its plan).
    """

    worker: int
    incarnation: int
    clock: int
    attempt: int

    @property
    def seeds(self) -> bool:
        """Whether it is the initial parameters, not a gradient."""
        return self.clock == 0


class Weighted(Value, frozen=True, array_like=True):
    """A contributor and the factor its gradient is multiplied by when contributions combine.

    whole: every block of it lies in its worker's shared memory; servers that map it were not told block by block.
    version: of the parameters that it was computed on.
    """

    contributor: Contributor
    weight: float
    whole: bool = False
    version: int = 0


class Dataset(Value, frozen=True, array_like=True):
    """What the ledger must know of a training set to lease its samples.

    size: samples; batch: samples a worker takes per lease; balance: lease slower workers smaller
    batches, so that clocks keep step (used by Bounded).
    """

    size: int
    batch: int
    seed: int
    balance: bool = False


class Lease(Value, frozen=True, array_like=True):
    """Positions start..stop of the shuffled order of data epoch `epoch`, leased to one worker."""

    identity: int
    epoch: int
    spans: tuple[tuple[int, int], ...]

    @property
    def samples(self) -> int:
        return sum(stop - start for start, stop in self.spans)
