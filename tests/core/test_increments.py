"""Increments: a worker that adds them up has the servers' published copy, to the bit, whichever it was sent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from shoal.codec.codec import PULLS
from shoal.core import machine as k
from shoal.core.store import Store
from shoal.optim import SGD, AdamW
from shoal.placement import cut, owned
from shoal.runtime.decoder import Decoder
from shoal.storage import snapshot
from shoal.vocabulary import ITEM_BYTES, TableSpec
from shoal.wire import messages as m
from shoal.wire.gradient import WHOLE, Parameters

from .stores import SHAPES, Cluster, randoms, same_bits, table


def pulled(spec: TableSpec, *pulls: str) -> TableSpec:
    tensors = tuple(
        msgspec.structs.replace(item, pull=pulls[index % len(pulls)]) for index, item in enumerate(spec.tensors)
    )
    return msgspec.structs.replace(spec, tensors=tensors)


class Puller:
    """A worker's memory, fed from the stores of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.decoder = cluster, Decoder(cluster.spec)
        self.bound = [np.zeros(item.elements * ITEM_BYTES[item.dtype], np.uint8) for item in cluster.spec.tensors]
        self.received = 0  # bytes

    def pull(self, base: int) -> list[int]:
        """Take what has changed since `base` (0: all); returns the counts of increments, by block."""
        spec, counts = self.cluster.spec, {}
        for shard, store in enumerate(self.cluster.stores):
            mine = tuple(owned(spec, shard, self.cluster.shards))
            increments, payload = store.changes(mine, base, True) if base else ((), store.parameters(mine))
            message = Parameters(shard, 0, 0, self.cluster.seq, mine, 0, base, increments)
            places = self.decoder.places(message)
            left = iter(payload)
            for block, count in message.parts:
                for place in [places.get(block, self._slice(block))] if count else []:
                    parts = [next(left) for _ in range(max(count, 1))]
                    place[:] = b"".join(parts)
                    self.received += len(place)
                counts[block] = count
            self.decoder.take(message, self.bound)
        return [counts[block] for block in sorted(counts)]

    def _slice(self, block: int) -> memoryview:
        item = cut(self.cluster.spec)[block]
        width = ITEM_BYTES[self.cluster.spec.tensors[item.tensor].dtype]
        return self.bound[item.tensor][item.start * width : item.stop * width].data

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [
            torch.from_numpy(array.view(np.float32)).reshape(item.shape)
            for array, item in zip(self.bound, self.cluster.spec.tensors, strict=True)
        ]


def masters(cluster: Cluster) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for store in cluster.stores for array in store.table.dense.parameters]


LONG = SHAPES[:3]  # a scalar is less than its increment


@pytest.mark.parametrize("pull", PULLS)
def test_increments_add_up_to_what_is_sent_whole(pull: str) -> None:
    cluster = Cluster(pulled(table([AdamW(lr=0.01)], LONG), pull))
    cluster.seed(randoms(1, shapes=LONG))
    steady, late = Puller(cluster), Puller(cluster)
    steady.pull(0)
    first = steady.received
    for step in range(1, 5):
        cluster.step([randoms(step, shapes=LONG), randoms(100 + step, shapes=LONG)], (0.01,))
        assert set(steady.pull(step - 1) if step > 1 else steady.pull(0)) == ({1} if step > 1 else {WHOLE})
        late.pull(0)
        assert same_bits(steady.parameters, late.parameters)
        assert same_bits(steady.parameters, cluster.parameters())
    sent = (steady.received - 2 * first) / 3  # of three increments
    assert sent < 0.52 * first, "the narrowest of them is half as wide"
    (store,) = cluster.stores
    pairs = [(master, store.table.served(position)) for position, master in enumerate(store.table.dense.parameters)]
    error = max(float(np.abs(master - published).max()) for master, published in pairs)
    assert error < 0.05, "what is lost is in the next increment, so the copy stays near"


def test_a_worker_that_is_behind_gets_several_or_the_blocks() -> None:
    cluster = Cluster(pulled(table([SGD(lr=0.1)], LONG), "int4"))
    cluster.seed(randoms(1, shapes=LONG))
    for step in range(1, 12):
        cluster.step([randoms(step, shapes=LONG)], (0.1,), weights=(1.0,))
    steady = Puller(cluster)
    reference = Puller(cluster)
    reference.pull(0)
    assert set(steady.pull(8)) == {3}
    assert set(steady.pull(7)) != {4}, "not kept any more"
    assert same_bits(steady.parameters, reference.parameters)


def test_what_no_gradient_reached_is_not_sent() -> None:
    for spec in (table([SGD(lr=0.1)]), pulled(table([SGD(lr=0.1)]), "e3m0", "")):
        cluster = Cluster(spec)
        cluster.seed(randoms(1))
        puller = Puller(cluster)
        cluster.step([randoms(1)], (0.1,), weights=(1.0,))
        puller.pull(0)
        some = [tensor if index == 2 else None for index, tensor in enumerate(randoms(2))]
        cluster.step([some], (0.1,), weights=(1.0,))
        changed = [cut(spec)[block].tensor == 2 for block in range(len(cut(spec)))]
        assert [bool(count) for count in puller.pull(1)] == changed
        assert same_bits(puller.parameters, cluster.parameters())


def test_shards_and_threads_do_not_show() -> None:
    spec = pulled(table([AdamW(lr=0.01)]), "int8", "2bit", "float16", "sign")
    found = []
    for shards, threads in ((1, 1), (3, 1), (1, 2)):
        cluster = Cluster(spec, shards, threads)
        cluster.seed(randoms(1))
        for step in range(1, 4):
            cluster.step([randoms(step), randoms(10 + step)], (0.01,))
        found.append(cluster.parameters())
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_a_snapshot_has_what_workers_hold(tmp_path: Path) -> None:
    spec = pulled(table([SGD(lr=0.1)]), "2bit")
    cluster = Cluster(spec, 2)
    cluster.seed(randoms(1))
    cluster.step([randoms(2)], (0.1,), weights=(1.0,))
    cluster.save(tmp_path / "with")
    again = Cluster(spec)
    again.seed(randoms(3))
    again.stores[0].load(tmp_path / "with")
    assert same_bits(again.parameters(), cluster.parameters())
    for one in (cluster, again):
        one.seq = 1
        one.step([randoms(4)], (0.1,), weights=(1.0,))
    assert same_bits(again.parameters(), cluster.parameters())


@pytest.mark.parametrize(("saved", "wanted"), [("", "int8"), ("int8", "")])
def test_a_snapshot_fits_a_job_with_another_pull_codec(tmp_path: Path, saved: str, wanted: str) -> None:
    plain = table([SGD(lr=0.1)])
    cluster = Cluster(pulled(plain, saved))
    cluster.seed(randoms(1))
    cluster.step([randoms(2)], (0.1,), weights=(1.0,))
    cluster.save(tmp_path / "snapshot")
    other = Store(snapshot)
    other.run(k.CreateTable(pulled(plain, wanted), 0, 1))
    other.load(tmp_path / "snapshot")
    found = [torch.from_numpy(other.table.served(position)) for position in range(len(other.table.blocks))]
    assert same_bits(found, masters(cluster))


def test_a_block_that_another_server_gave_is_sent_whole_to_who_is_behind_it() -> None:
    cluster = Cluster(pulled(table([SGD(lr=0.1)]), "int8"))
    cluster.seed(randoms(1))
    cluster.step([randoms(2)], (0.1,), weights=(1.0,))
    (store,) = cluster.stores
    backup = Store(snapshot)
    backup.run(k.CreateTable(cluster.spec, 0, 1, replicated=True, absent=True))
    blocks = tuple(block.index for block in store.table.blocks)
    fill = m.Fill(0, 1, 1, blocks)
    payload = b"".join(store.give(blocks))
    (place,) = backup.take_fill(fill, len(payload))
    place[:] = payload
    backup.load_fill(fill, wanted=True)
    assert backup.changes(blocks, 1, True)[0] == (0,) * len(blocks)
    assert backup.changes(blocks, -1, True)[0] == (WHOLE,) * len(blocks)
    assert [bytes(part) for part in backup.parameters(blocks)] == [bytes(part) for part in store.parameters(blocks)]
