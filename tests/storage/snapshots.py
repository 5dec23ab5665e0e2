"""A small table, and snapshots of it by any number of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shoal.placement import cut, owned
from shoal.storage import snapshot
from shoal.storage.tensors import Array
from shoal.vocabulary import PolicySpec, TableSpec, TensorSpec

SPEC = TableSpec(
    (
        TensorSpec("wte.weight", (5, 7), "bfloat16", 0),
        TensorSpec("a|b", (), "float32", 0),  # the separator of entries within a name
        TensorSpec("empty", (0, 3), "float32", 0),
        TensorSpec("half", (3,), "float16", 0),
        TensorSpec("head.weight", (4, 2, 3), "float32", 0),
    ),
    "adam",
    ((),),
    PolicySpec("sync"),
    block_elements_max=10,
)


def model(seed: int = 1) -> dict[str, Array]:
    """The float32 masters, in their shapes."""
    rng = np.random.default_rng(seed)
    return {item.name: rng.normal(size=item.shape).astype(np.float32) for item in SPEC.tensors}


def entries(shard: int, shards: int, seed: int | None = 1) -> dict[tuple[str, int, str], Array]:
    """What one shard holds: parameters, one state array and step counts; with seed None zeros, to be filled."""
    flat = {name: array.reshape(-1) for name, array in model(seed or 0).items()}
    found: dict[tuple[str, int, str], Array] = {}
    for index in owned(SPEC, shard, shards):
        block = cut(SPEC)[index]
        name = SPEC.tensors[block.tensor].name
        values = flat[name][block.start : block.stop].copy()
        found[name, block.start, "parameters"] = values if seed is not None else np.zeros_like(values)
        found[name, block.start, "m"] = values * 2 if seed is not None else np.zeros_like(values)
        found[name, block.start, "step"] = np.array([7 if seed is not None else 0])
    return found


def write(directory: Path | str, version: int = 5, shards: int = 2, seed: int = 1, **options: object) -> None:
    """A whole snapshot of model(seed)."""
    receipts = tuple(
        snapshot.write_shard(directory, shard, shards, version, SPEC, entries(shard, shards, seed))
        for shard in range(shards)
    )
    snapshot.write_manifest(directory, "job", version, version * 2, receipts, SPEC, **options)  # type: ignore[arg-type]


def resume(directory: Path | str, shards: int) -> list[dict[tuple[str, int, str], Array]]:
    """What servers find who resume from it."""
    found = [entries(shard, shards, None) for shard in range(shards)]
    for part in found:
        snapshot.read_into(directory, SPEC, part)
    return found
