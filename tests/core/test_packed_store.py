"""Stores that are pushed packed gradients come to the bits of those that are pushed what is decoded from them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch

from shoal.codec.codec import CODECS, PUSHES, push_codec
from shoal.codec.packed import Packed
from shoal.core import machine as k
from shoal.core.merging import products
from shoal.core.store import Store
from shoal.kernel import read_only
from shoal.optim import LAMB, SGD, AdamW
from shoal.placement import cut
from shoal.vocabulary import Contributor, TableSpec, Weighted

from .stores import randoms, table
from .test_sums import everything, new_store

SEEDER = Contributor(0, 0, 0, 0)
SHARES = (0.5, 0.3, 0.2)


def pushed(spec: TableSpec, push: str) -> TableSpec:
    tensors = tuple(msgspec.structs.replace(item, push=push) for item in spec.tensors)
    return msgspec.structs.replace(spec, tensors=tensors)


def stage(store: Store, who: Contributor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Push these; returns what servers make of it."""
    spec, blocks = store.table.spec, cut(store.table.spec)
    seen = [torch.zeros(tensor.numel()) for tensor in tensors]
    mine = [block.index for block in blocks]
    for block, view in zip(blocks, store.stage(who, mine), strict=True):
        part = tensors[block.tensor].reshape(-1)[block.start : block.stop].numpy()
        codec = CODECS["float32"] if who.seeds else push_codec(spec.tensors[block.tensor])
        assert len(view) == codec.bytes_of(block.elements)
        target = np.frombuffer(view, codec.item)
        if isinstance(codec, Packed):
            codec.encode(target, part, block.index)
        else:
            codec.encode(target, part)
        codec.first(seen[block.tensor].numpy()[block.start : block.stop], read_only(target), np.float32(1))
    store.delivered(who, mine)
    return [flat.reshape(tensor.shape) for flat, tensor in zip(seen, tensors, strict=True)]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("push", PUSHES)
@pytest.mark.parametrize("rule", [SGD(lr=0.1, momentum=0.9), AdamW(lr=0.1)], ids=["sgd", "adamw"])
def test_the_bits_of_what_is_decoded(rule: SGD | AdamW, push: str, workers: int) -> None:
    plain = table([rule], clip_norm=1.0 if workers == 2 else None)
    packing, reference = new_store(pushed(plain, push)), new_store(plain)
    train(packing, reference, workers)
    assert everything(packing) == everything(reference)


@pytest.mark.parametrize("push", PUSHES)
def test_inner_products_are_those_of_what_is_decoded(push: str) -> None:
    store = new_store(pushed(table([SGD(lr=0.1)]), push))
    who = [Contributor(worker, 0, 1, 0) for worker in range(2)]
    one, other = ([seen.double() for seen in stage(store, each, randoms(each.worker))] for each in who)
    sums: dict[int, torch.Tensor] = {}
    for position, block in enumerate(store.table.blocks):
        sent = [store._staging[each].blocks[position] for each in who]
        found = torch.tensor(products(store.table.pushes[position], sent, block.elements))
        sums[block.tensor] = sums.get(block.tensor, torch.zeros(3)) + found
    for tensor, (a, b) in enumerate(zip(one, other, strict=True)):
        right = torch.tensor([float((a * a).sum()), float((a * b).sum()), float((b * b).sum())])
        torch.testing.assert_close(sums[tensor], right, rtol=1e-5, atol=1e-4)


def train(packing: Store, reference: Store, workers: int, foreseen: int = 0) -> None:
    """Two steps of both, clipped where the table says so. foreseen: contributions combined ahead."""
    for store in (packing, reference):
        stage(store, SEEDER, randoms(1))
        store.run(k.Seed(1, SEEDER))
    for clock in (1, 2):
        who = [Weighted(Contributor(worker, 0, clock, 0), SHARES[worker]) for worker in range(workers)]
        for item in who:
            seen = stage(packing, item.contributor, randoms(10 * clock + item.contributor.worker))
            stage(reference, item.contributor, seen)
        results = []
        for store in (packing, reference):
            if foreseen and store is packing:
                store.run(k.Combine(tuple(who[:foreseen])))
            factors: tuple[tuple[str, tuple[float, ...]], ...] = ()
            if store.table.spec.clip_norm is not None:
                partials = store.run(k.Measure(clock + 1, "gradient", tuple(who), (0.1,), ()))
                results.append(partials)
                factors = (("gradient", (0.25,)),)
            store.run(k.Apply(clock + 1, tuple(who), (0.1,), factors))
        assert not results or results[0] == results[1]


@pytest.mark.parametrize("foreseen", [1, 2, 3])
@pytest.mark.parametrize("push", ["int4", "bfloat16"])
def test_what_was_combined_ahead_does_not_show(push: str, foreseen: int) -> None:
    plain = table([AdamW(lr=0.1)])
    packing, reference = new_store(pushed(plain, push)), new_store(plain)
    train(packing, reference, 3, foreseen)
    assert everything(packing) == everything(reference)


def test_trust_is_measured_of_what_is_decoded() -> None:
    plain = table([LAMB(lr=0.1)])
    packing, reference = new_store(pushed(plain, "2bit")), new_store(plain)
    who = (Weighted(Contributor(0, 0, 1, 0), 1.0),)
    for store in (packing, reference):
        stage(store, SEEDER, randoms(1))
        store.run(k.Seed(1, SEEDER))
    stage(reference, who[0].contributor, stage(packing, who[0].contributor, randoms(5)))
    one, other = (store.run(k.Measure(2, "trust", who, (0.1,), ())) for store in (packing, reference))
    assert one == other
