"""Replicas of a shard: what a backup computes from the sum that it was handed equals, to the bit, what one server
computes from the contributions themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from numba.core.dispatcher import Dispatcher

from shoal.arena import available
from shoal.core import machine as k
from shoal.core.store import CHECKED_SHARE, Store
from shoal.errors import ProtocolError
from shoal.optim import LAMB, SGD, AdamW, Rule, phases
from shoal.placement import cut
from shoal.storage import snapshot
from shoal.vocabulary import Contributor, TableSpec, Weighted
from shoal.wire import messages as m

from .stores import SHAPES, TORCH, Tensors, randoms, table

SHARES = (0.3, 0.1, 0.2, 0.25, 0.15)
SEEDER = Weighted(Contributor(0, 1, 0, 0), 1.0)
FAR_OR_NEAR = [
    "far",
    pytest.param("near", marks=pytest.mark.skipif(not available(), reason="no memory can be shared here")),
]

Factors = tuple[tuple[str, tuple[float, ...]], ...]
Entries = dict[tuple[str, int, str], bytes]


def mixed(
    rules: Sequence[Rule], clip_norm: float | None = None, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> TableSpec:
    """Tensors of every wire format."""
    spec = table(rules, shapes, clip_norm=clip_norm)
    dtypes = [list(TORCH)[index % len(TORCH)] for index in range(len(spec.tensors))]
    tensors = [msgspec.structs.replace(item, dtype=kind) for item, kind in zip(spec.tensors, dtypes, strict=True)]
    return msgspec.structs.replace(spec, tensors=tuple(tensors))


def gradients(spec: TableSpec, seed: int) -> list[torch.Tensor]:
    """One for each tensor, as it travels."""
    plain = randoms(seed, shapes=[item.shape for item in spec.tensors])
    return [tensor.to(TORCH[item.dtype]) for tensor, item in zip(plain, spec.tensors, strict=True)]


def new_store(spec: TableSpec, shared: bool = False, **more: bool) -> Store:
    store = Store(snapshot, threads=2, shared=shared)
    store.run(k.CreateTable(spec, 0, 1, **more))
    return store


def stage(store: Store, who: Contributor, tensors: Tensors) -> None:
    blocks = cut(store.table.spec)
    mine = [block.index for block in blocks if tensors[block.tensor] is not None]
    for index, view in zip(mine, store.stage(who, mine), strict=True):
        tensor = tensors[blocks[index].tensor]
        assert tensor is not None
        view[:] = tensor.reshape(-1)[blocks[index].start : blocks[index].stop].view(torch.uint8).numpy().data
    store.delivered(who, mine)


def everything(store: Store) -> Entries:
    """Parameters, states and step counts, and the parameters as workers get them, in bytes."""
    blocks = [block.index for block in store.table.blocks]
    sent = {("", block, "sent"): bytes(view) for block, view in zip(blocks, store.parameters(blocks), strict=True)}
    return {key: array.tobytes() for key, array in store.table.entries().items()} | sent


def hand_over(primary: Store, backup: Store) -> None:
    """The primary's sum comes to lie on the backup, too: lent if it is, else sent."""
    blocks = tuple(sorted(primary.sums.held.delivered))
    if not backup.sums.lent(0):
        for place, part in zip(backup.sums.places(blocks), primary.sums.parts(blocks), strict=True):
            place[:] = part
    backup.sums.hold(0, blocks)


@dataclass
class Replicated:
    """A primary and its backups, and a store without replicas that is given the same contributions."""

    spec: TableSpec
    way: str = "far"
    clock: int = 0
    backups: list[Store] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.primary, self.alone = new_store(self.spec, self.near, replicated=True), new_store(self.spec)
        self.add_backup()
        self.update([SEEDER], [gradients(self.spec, 1)], seed=True)

    @property
    def near(self) -> bool:
        return self.way == "near"

    def add_backup(self, absent: bool = False) -> Store:
        backup = new_store(self.spec, self.near, replicated=True, absent=absent)
        if self.near:
            descriptor = self.primary.sums.descriptor
            assert descriptor is not None
            backup.sums.lend(0, os.dup(descriptor))
        self.backups.append(backup)
        return backup

    def step(
        self, contributions: Sequence[Tensors], rates: tuple[float, ...], weights: Sequence[float] = SHARES
    ) -> None:
        self.clock += 1
        identities = [Contributor(worker, 1, self.clock, 0) for worker in range(len(contributions))]
        contributors = [Weighted(who, weight) for who, weight in zip(identities, weights, strict=False)]
        self.update(contributors, contributions, rates)

    def update(
        self,
        contributors: Sequence[Weighted],
        contributions: Sequence[Tensors],
        rates: tuple[float, ...] = (),
        seed: bool = False,
    ) -> None:
        who = tuple(contributors)
        for item, tensors in zip(contributors, contributions, strict=True):
            for store in (self.primary, self.alone):
                stage(store, item.contributor, tensors)
        self.primary.run(k.Combine(who, held=True))
        for backup in self.backups:
            hand_over(self.primary, backup)
        replicas = (self.primary, *self.backups)
        if seed:
            self.alone.run(k.Seed(1, who[0].contributor))
            for store in replicas:
                store.run(k.Seed(1, who[0].contributor, summed=True))
        else:
            self._apply(replicas, who, rates)
        for store in (self.primary, self.alone):
            store.free([item.contributor for item in who])

    def _apply(self, replicas: Sequence[Store], who: tuple[Weighted, ...], rates: tuple[float, ...]) -> None:
        factors: Factors = ()
        for phase in phases.phases(self.spec):
            partials = self.alone.run(k.Measure(self.clock, phase, who, rates, factors))
            for store in replicas:
                found = store.run(k.Measure(self.clock, phase, who, rates, factors, summed=True))
                assert found == partials or store.table.absent, f"what {phase} measures is not the same"
            factors += ((phase, phases.reduce(self.spec, phase, dict(partials))),)
        self.alone.run(k.Apply(self.clock, who, rates, factors))
        for store in replicas:
            store.run(k.Apply(self.clock, who, rates, factors, summed=True))


def train(job: Replicated, steps: int = 4, workers: int = 5) -> None:
    """Clocks of one worker, of two, ... up to `workers`, again and again."""
    for step in range(steps):
        count = step % workers + 1
        contributions = [gradients(job.spec, 10 * job.clock + worker + 100) for worker in range(count)]
        job.step(contributions, tuple(0.01 / (step + 1) for _ in job.spec.groups))


SPECS = {
    "adamw, float32, clipped": table([AdamW(weight_decay=0.1), AdamW(lr=0.1)], clip_norm=1.0),
    "adamw, float32": table([AdamW()]),
    "adamw, bfloat16, clipped": table([AdamW()], dtype="bfloat16", clip_norm=1.0),
    "adamw, float16, clipped": table([AdamW()], dtype="float16", clip_norm=1.0),
    "lamb, float32, clipped": table([LAMB(weight_decay=0.1)], clip_norm=1.0),
    "lamb, bfloat16": table([LAMB()], dtype="bfloat16"),
    "lamb, float16": table([LAMB()], dtype="float16"),
    "sgd, all of them, clipped": mixed([SGD(momentum=0.9), SGD(momentum=0.5)], clip_norm=1.0),
    "adamw, all of them, others go on": msgspec.structs.replace(
        mixed([AdamW()]), policy=table([AdamW()], policy="async").policy
    ),
}


@pytest.mark.parametrize("way", FAR_OR_NEAR)
@pytest.mark.parametrize("name", SPECS)
def test_replicas_have_the_bits_of_a_server_that_combines_in_passing(name: str, way: str) -> None:
    job = Replicated(SPECS[name], way)
    assert everything(job.alone) == everything(job.primary) == everything(job.backups[0])
    train(job, steps=6)
    assert everything(job.alone) == everything(job.primary)
    assert everything(job.alone) == everything(job.backups[0])
    before = everything(job.alone)
    train(job, steps=1)
    assert everything(job.alone) != before, "the comparison can tell"


@pytest.mark.parametrize("way", FAR_OR_NEAR)
@pytest.mark.parametrize("spec", [table([AdamW()]), mixed([LAMB()], clip_norm=1.0)], ids=["adamw", "lamb"])
def test_blocks_without_a_gradient_keep_their_state_on_every_replica(spec: TableSpec, way: str) -> None:
    job = Replicated(spec, way)
    train(job)
    before = everything(job.primary)
    one: list[torch.Tensor | None] = list(gradients(spec, 70))
    other: list[torch.Tensor | None] = list(gradients(spec, 71))
    one[1] = one[2] = other[2] = None  # the second tensor is of one worker alone, the third of nobody
    job.step([one, other], (0.01,))
    assert everything(job.alone) == everything(job.primary) == everything(job.backups[0])
    after, name = everything(job.primary), spec.tensors[2].name
    kept = {key for key in after if key[0] == name}
    assert kept and all(after[key] == before[key] for key in kept)
    moved = {key[0] for key in after if key[2] == "step" and after[key] != before[key]}
    assert moved == {item.name for item in spec.tensors} - {name}


@pytest.mark.parametrize("way", FAR_OR_NEAR)
def test_an_update_of_no_gradient_at_all_changes_no_replica(way: str) -> None:
    job = Replicated(table([AdamW()], clip_norm=1.0), way)
    train(job)
    before = everything(job.primary)
    job.step([[None] * len(SHAPES)], (0.01,), (1.0,))
    assert before == everything(job.primary) == everything(job.backups[0]) == everything(job.alone)


@pytest.mark.parametrize("foreseen", [(0, 1, 2), (0, 1, 2, 3, 4), (1, 0), (2, 3)], ids=str)
def test_what_was_combined_on_a_guess_changes_no_bit_of_the_sum(foreseen: tuple[int, ...]) -> None:
    job = Replicated(mixed([AdamW()], clip_norm=1.0))
    train(job)
    who = [Weighted(Contributor(worker, 1, 50, 0), weight) for worker, weight in enumerate(SHARES)]
    tensors = [gradients(job.spec, 90 + worker) for worker in range(5)]
    for item, contribution in zip(who, tensors, strict=True):
        stage(job.primary, item.contributor, contribution)
    job.primary.hurry(False)
    job.primary.run(k.Combine(tuple(who[index] for index in foreseen)))
    job.primary.hurry()  # as the Prepare does, which ends the guess: what is to be held is combined to the end
    job.clock = 50
    job.update(who, tensors, (0.01,))
    assert everything(job.alone) == everything(job.primary) == everything(job.backups[0])


def test_a_sum_that_came_to_nothing_leaves_no_trace_in_the_next() -> None:
    """Its contributor died: others are combined in its place."""
    job = Replicated(mixed([AdamW()], clip_norm=1.0))
    train(job)
    dead = Weighted(Contributor(7, 1, 50, 0), 0.5)
    stage(job.primary, dead.contributor, gradients(job.spec, 80))
    job.primary.run(k.Combine((dead,), held=True))
    hand_over(job.primary, job.backups[0])
    train(job)
    assert everything(job.alone) == everything(job.primary) == everything(job.backups[0])


@pytest.mark.skipif(not available(), reason="no memory can be shared here")
def test_a_lent_sum_is_read_where_it_lies_and_a_sent_one_is_not() -> None:
    near, far = (Replicated(table([SGD()], dtype="bfloat16"), way) for way in ("near", "far"))
    for job in (near, far):
        train(job)
    assert not any(block.any() for block in near.backups[0].sums.own), "nothing was sent"
    assert all(block.any() for block in far.backups[0].sums.own)
    with pytest.raises(ValueError, match="read-only"):
        near.backups[0].sums.held.blocks[0][0] = 1
    with pytest.raises(TypeError, match="read-only"):
        near.backups[0].sums.held.memory[0] = 1


@pytest.mark.skipif(not available(), reason="no memory can be shared here")
def test_a_lent_sum_outlives_the_server_that_lent_it() -> None:
    job = Replicated(table([AdamW()]), "near")
    who = (Weighted(Contributor(0, 1, 1, 0), 1.0),)
    for store in (job.primary, job.alone):
        stage(store, who[0].contributor, gradients(job.spec, 5))
    job.primary.run(k.Combine(who, held=True))
    (backup,) = job.backups
    hand_over(job.primary, backup)
    del job.primary
    job.alone.run(k.Apply(1, who, (0.1,), ()))
    backup.run(k.Apply(1, who, (0.1,), (), summed=True))
    assert everything(job.alone) == everything(backup)


def test_memory_that_is_no_arena_is_not_read() -> None:
    store = new_store(table([SGD()]), replicated=True)
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(ProtocolError):
        store.sums.lend(0, reading)
    assert not store.sums.lent(0)


def test_a_seed_that_lacks_blocks_is_refused_by_a_replica_too() -> None:
    store = new_store(table([SGD()]), replicated=True)
    stage(store, SEEDER.contributor, [*randoms(1)[:3], None])
    store.run(k.Combine((SEEDER,), held=True))
    with pytest.raises(ProtocolError, match="the seed of worker 0 lacks 1 blocks"):
        store.run(k.Seed(1, SEEDER.contributor, summed=True))


@pytest.mark.parametrize("way", FAR_OR_NEAR)
@pytest.mark.parametrize(
    "spec", [table([AdamW(), AdamW(lr=0.1)], clip_norm=1.0), mixed([LAMB()], clip_norm=1.0)], ids=["adamw", "lamb"]
)
def test_no_step_of_a_replica_waits_for_a_compiler(spec: TableSpec, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Replicated(spec, way)

    def refuse(kernel: Dispatcher, signature: object) -> None:
        raise AssertionError(f"{kernel} compiles, or loads from disk, during a step")

    monkeypatch.setattr(Dispatcher, "compile", refuse)
    train(job)


# --- checksums ----------------------------------------------------------------------------------

MANY = ((100,), (33,), (7, 3), (), (64,)) * 7  # 35 blocks: more than two for some versions


def flip(array: npt.NDArray[Any]) -> None:
    """One bit, the lowest of the last byte but three."""
    array.view(np.uint8)[-4] ^= 1


def test_replicas_have_one_checksum_of_every_version() -> None:
    job = Replicated(mixed([AdamW()], shapes=MANY))
    train(job)
    versions = range(1, 3 * CHECKED_SHARE)
    sums = [job.primary.checksum(version) for version in versions]
    assert sums == [job.backups[0].checksum(version) for version in versions]
    assert 0 not in sums
    assert len(set(sums)) == CHECKED_SHARE, "others are looked at in each version"


@pytest.mark.parametrize("what", ["parameters", "exp_avg", "exp_avg_sq"])
def test_a_flipped_bit_is_seen_in_the_versions_that_look_at_its_block(what: str) -> None:
    job = Replicated(mixed([AdamW()], shapes=MANY))
    train(job)
    backup, table_ = job.backups[0], job.backups[0].table
    entries = table_.entries()
    for position, block in enumerate(table_.blocks):
        array = entries[job.spec.tensors[block.tensor].name, block.start, what]
        flip(array)
        seen = {v for v in range(1, CHECKED_SHARE + 1) if backup.checksum(v) != job.primary.checksum(v)}
        assert seen == {position % CHECKED_SHARE or CHECKED_SHARE}, f"block {block.index}"
        flip(array)
    assert backup.checksum(1) == job.primary.checksum(1)


def test_a_server_without_blocks_has_a_checksum_and_its_replicas_the_same() -> None:
    spec = table([AdamW()], ((3,),))
    stores = [Store(snapshot) for _ in range(6)]
    for index, store in enumerate(stores):
        store.run(k.CreateTable(spec, index % 3, 3, replicated=True))
    for one, other in zip(stores[:3], stores[3:], strict=True):
        assert one.checksum(1) == other.checksum(1) != 0


# --- filling ------------------------------------------------------------------------------------


def fill(giver: Store, taker: Store, blocks: Sequence[int], wanted: bool = True) -> None:
    gift = m.Fill(0, 5, 5, tuple(blocks))
    given = giver.give(blocks)
    (place,) = taker.take_fill(gift, sum(view.nbytes for view in given))
    place[:] = b"".join(given)
    taker.load_fill(gift, wanted)


def of_blocks(store: Store, blocks: Sequence[int]) -> list[bytes]:
    return [array.tobytes() for block in blocks for array in store.table.of_block(block)]


@pytest.mark.parametrize("way", FAR_OR_NEAR)
@pytest.mark.parametrize(
    "spec",
    [table([AdamW()], clip_norm=1.0), mixed([AdamW()]), table([LAMB()], dtype="float16", clip_norm=1.0)],
    ids=["adamw", "all formats", "lamb"],
)
def test_a_replica_that_is_filled_while_training_goes_on_ends_with_the_same_bits(spec: TableSpec, way: str) -> None:
    job = Replicated(spec, way)
    train(job)
    late, blocks = job.add_backup(absent=True), [block.index for block in cut(spec)]
    empty = everything(late)
    train(job)
    assert everything(late) == empty, "blocks that are absent are not updated"
    assert late.checksum(1) == 0
    some, others = blocks[::2], blocks[1::2]
    fill(job.primary, late, some)
    train(job)
    assert of_blocks(late, some) == of_blocks(job.primary, some), "what it has, it updates"
    assert not any(any(array) for array in of_blocks(late, others))
    assert late.checksum(1) == 0
    fill(job.primary, late, others)
    assert everything(late) == everything(job.primary)
    train(job)
    assert everything(late) == everything(job.primary) == everything(job.alone)
    assert all(late.checksum(version) == job.primary.checksum(version) != 0 for version in range(1, 20))


def test_a_block_that_is_given_twice_is_as_it_was_given_last() -> None:
    job = Replicated(table([AdamW()]))
    late, blocks = job.add_backup(absent=True), [block.index for block in cut(job.spec)]
    fill(job.primary, late, blocks)
    train(job)
    assert everything(late) == everything(job.primary)
    flip(late.table.of_block(blocks[0])[0])
    fill(job.primary, late, blocks[:1])
    assert everything(late) == everything(job.primary)


def test_a_gift_that_is_not_wanted_changes_nothing() -> None:
    job = Replicated(table([AdamW()]))
    train(job)
    late, blocks = job.add_backup(absent=True), [block.index for block in cut(job.spec)]
    before, generation = everything(late), late.table.generation
    fill(job.primary, late, blocks, wanted=False)
    assert everything(late) == before and late.table.generation == generation
    assert late.table.absent == set(range(len(blocks)))
    late.load_fill(m.Fill(0, 5, 5, tuple(blocks)), True)  # its bytes were forgotten, or never came
    assert everything(late) == before and late.checksum(1) == 0


def test_what_is_given_stays_as_it_was_when_it_was_given() -> None:
    job = Replicated(table([SGD()]))
    given = job.primary.give([0])
    before = [bytes(view) for view in given]
    train(job)
    assert [bytes(view) for view in given] == before != [bytes(view) for view in job.primary.give([0])]


def test_a_gift_of_the_wrong_size_is_refused() -> None:
    store = new_store(table([AdamW()]), replicated=True, absent=True)
    right = sum(view.nbytes for view in store.give([0]))
    with pytest.raises(ProtocolError, match=rf"server 3 gave {right - 4} bytes for {right} of \(0,\)"):
        store.take_fill(m.Fill(3, 5, 5, (0,)), right - 4)


@pytest.mark.skipif(not available(), reason="no memory can be shared here")
def test_the_stamp_says_that_a_gift_changes_the_parameters() -> None:
    job = Replicated(table([AdamW()], dtype="bfloat16"), "near")
    late = job.add_backup(absent=True)
    before = late.stamp
    fill(job.primary, late, [0])
    assert late.stamp == before + 2
    fill(job.primary, late, [1], wanted=False)
    assert late.stamp == before + 2
