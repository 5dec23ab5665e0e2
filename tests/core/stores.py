"""A few stores driven as the machines would drive them, without machines, and tables for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from shoal.core import machine as k
from shoal.core.store import Store
from shoal.optim import Rule, phases
from shoal.placement import cut, owned
from shoal.storage import snapshot
from shoal.vocabulary import Contributor, PolicySpec, TableSpec, TensorSpec, Weighted

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = ((300, 301), (70_001,), (7, 3), ())  # more than one chunk, more than one block, one, and a scalar
WEIGHTS = (0.75, 0.25)

Tensors = Sequence[torch.Tensor | None]


def table(
    rules: Sequence[Rule], shapes=SHAPES, dtype: str = "float32", clip_norm: float | None = None, policy: str = "sync"
) -> TableSpec:
    tensors = tuple(TensorSpec(f"t|{i}", shape, dtype, i % len(rules)) for i, shape in enumerate(shapes))
    return TableSpec(
        tensors, rules[0].name, tuple(rule.settings for rule in rules), PolicySpec(policy), clip_norm,
        block_elements_max=80_000,
    )  # fmt: skip


def randoms(seed: int, dtype: str = "float32", shapes=SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(TORCH[dtype]) for shape in shapes]


@dataclass
class Cluster:
    """A few stores driven as the machines would drive them, without machines."""

    spec: TableSpec
    shards: int = 1
    threads: int = 1
    seq: int = 0
    stores: list[Store] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stores = [Store(snapshot, self.threads) for _ in range(self.shards)]
        for shard, store in enumerate(self.stores):
            store.run(k.CreateTable(self.spec, shard, self.shards))

    def push(self, contributor: Contributor, tensors: Tensors) -> None:
        blocks = cut(self.spec)
        for shard, store in enumerate(self.stores):
            mine = [b for b in owned(self.spec, shard, self.shards) if tensors[blocks[b].tensor] is not None]
            for index, view in zip(mine, store.stage(contributor, mine), strict=True):
                tensor = tensors[blocks[index].tensor]
                assert tensor is not None
                flat = tensor.reshape(-1)[blocks[index].start : blocks[index].stop]
                view[:] = flat.view(torch.uint8).numpy().data
            store.delivered(contributor, mine)

    def seed(self, tensors: Tensors) -> None:
        contributor = Contributor(0, 1, 0, 0)
        self.push(contributor, tensors)
        for store in self.stores:
            store.run(k.Seed(0, contributor))
            store.free([contributor])

    def step(
        self,
        contributions: Sequence[Tensors],
        rates: tuple[float, ...],
        weights=WEIGHTS,
        foresee: Callable[[Store, tuple[Weighted, ...]], None] | None = None,
    ) -> None:
        self.seq += 1
        identities = [Contributor(worker, 1, self.seq, 0) for worker in range(len(contributions))]
        for identity, tensors in zip(identities, contributions, strict=True):
            self.push(identity, tensors)
        weighted = tuple(Weighted(c, w) for c, w in zip(identities, weights, strict=True))
        for store in self.stores if foresee is not None else ():
            foresee(store, weighted)
        factors: tuple[tuple[str, tuple[float, ...]], ...] = ()
        for phase in phases.phases(self.spec):
            found = [store.run(k.Measure(self.seq, phase, weighted, rates, factors)) for store in self.stores]
            partials = {block: values for part in found for block, values in part}
            factors += ((phase, phases.reduce(self.spec, phase, partials)),)
        for store in self.stores:
            store.run(k.Apply(self.seq, weighted, rates, factors))
            store.free(identities)

    def parameters(self) -> list[torch.Tensor]:
        blocks = cut(self.spec)
        out = [torch.full(item.shape, torch.nan, dtype=TORCH[item.dtype]) for item in self.spec.tensors]
        for shard, store in enumerate(self.stores):
            mine = owned(self.spec, shard, self.shards)
            for index, view in zip(mine, store.parameters(mine), strict=True):
                block = blocks[index]
                wire = torch.frombuffer(bytearray(view), dtype=TORCH[self.spec.tensors[block.tensor].dtype])
                out[block.tensor].reshape(-1)[block.start : block.stop] = wire
        return out

    def save(self, directory: Path) -> None:
        for store in self.stores:
            store.run(k.Copy(self.seq, str(directory)))
        files = tuple(store.write(self.seq, directory) for store in self.stores)
        snapshot.write_manifest(directory, "job", self.seq, self.seq, files, self.spec)


def same_bits(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
               for a, b in zip(one, other, strict=True))  # fmt: skip
