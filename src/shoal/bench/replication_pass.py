"""A process of `shoal bench replication`: passes the rule over a shard of its own when told to, and times each.

python -m shoal.bench.replication_pass SHARD    (SHARD is JSON, see orders.Shard)
"""

from __future__ import annotations

import sys

import msgspec
import torch

from shoal.bench.orders import Answer, Shard
from shoal.bench.rules import RULES
from shoal.bench.shapes import gpt_shapes
from shoal.bench.turns import Step, follow
from shoal.bench.workload import SETS, WEIGHTS_SCALE, gradients_of
from shoal.core import machine as k
from shoal.core.store import Store
from shoal.policy import Sync
from shoal.storage import snapshot
from shoal.vocabulary import Contributor, TableSpec, TensorSpec, Weighted


def main() -> None:
    shard = msgspec.json.decode(sys.argv[1], type=Shard)
    follow(shard.control, shard.name, {"": pass_over(filled(shard))}, lambda _: Answer())


def filled(shard: Shard) -> Store:
    """A server's store of such a shard, with parameters, that holds a sum as a backup does."""
    rule, shapes = RULES[shard.optimizer], gpt_shapes(shard.params)
    tensors = tuple(TensorSpec(name, shape, "float32", 0) for name, shape in shapes)
    spec = TableSpec(tensors, rule.name, (rule.settings,), Sync().spec)
    store = Store(snapshot, shard.threads, shard.shared)
    store.run(k.CreateTable(spec, 0, 1, replicated=True))
    table, sums = store.table, store.sums
    generator = torch.Generator().manual_seed(0)
    for parameters in table.dense.parameters:
        parameters[:] = WEIGHTS_SCALE * torch.randn(parameters.size, generator=generator).numpy()
    flat = [tensor.reshape(-1).numpy() for tensor in gradients_of(shapes, 0, SETS - 1)]
    for block, total in zip(table.blocks, sums.own, strict=True):
        total[:] = flat[block.tensor][block.start : block.stop]
    sums.hold_own(range(len(table.blocks)))
    return store


def pass_over(store: Store) -> Step:
    """One pass of the rule: the sum that is held goes into the parameters."""
    (rule,) = store.table.rules
    contributors, rates = (Weighted(Contributor(0, 1, 1, 0), 1.0),), (dict(rule.settings)["lr"],)

    def step(number: int) -> None:
        store.run(k.Apply(number + 1, contributors, rates, (), summed=True))

    return step


if __name__ == "__main__":
    main()
