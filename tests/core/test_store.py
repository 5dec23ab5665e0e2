"""A shard's numbers equal single-process training, and the same bits come out on any number of servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher

from shoal.codec.codec import codec_for
from shoal.core import machine as k
from shoal.core.store import Store
from shoal.errors import ConfigurationError, ProtocolError, SnapshotError
from shoal.optim import LAMB, SGD, AdamW, Rule
from shoal.optim.passes import Passes
from shoal.storage import snapshot
from shoal.vocabulary import TOKENS, Contributor, PolicySpec, TableSpec, TensorSpec, Weighted

from .stores import SHAPES, TORCH, WEIGHTS, Cluster, Tensors, randoms, same_bits, table


def reference(rules: Sequence[Rule], steps: int, clip_norm: float | None) -> list[torch.Tensor]:
    """Single-process AdamW or SGD on the weighted mean of the same gradients."""
    parameters = [tensor.requires_grad_() for tensor in randoms(1)]
    groups = [{"params": [p for i, p in enumerate(parameters) if i % len(rules) == g]} for g in range(len(rules))]
    for group, rule in zip(groups, rules, strict=True):
        group["weight_decay"] = rule.weight_decay
    make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[rules[0].name]
    optimizer = make(groups, lr=0.1)
    for step in range(1, steps + 1):
        for group, rule in zip(optimizer.param_groups, rules, strict=True):
            group["lr"] = rule.lr / step
        for parameter, one, other in zip(parameters, randoms(10 * step), randoms(10 * step + 1), strict=True):
            parameter.grad = one * WEIGHTS[0] + other * WEIGHTS[1]
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def run(rules: Sequence[Rule], steps: int, clip_norm: float | None = None, **cluster: int) -> Cluster:
    made = Cluster(table(rules, clip_norm=clip_norm), **cluster)
    made.seed(randoms(1))
    for step in range(1, steps + 1):
        made.step([randoms(10 * step), randoms(10 * step + 1)], tuple(rule.lr / step for rule in rules))
    return made


@pytest.mark.parametrize("clip_norm", [None, 1.0, 1e9])
@pytest.mark.parametrize(
    "rules",
    [[AdamW(lr=0.01, weight_decay=0.1), AdamW(lr=0.003, weight_decay=0.0)], [SGD(lr=0.1)]],
    ids=["adamw", "sgd"],
)
def test_two_contributors_equal_one_process(rules: list[Rule], clip_norm: float | None) -> None:
    ours = run(rules, 5, clip_norm, shards=2).parameters()
    for one, other in zip(ours, reference(rules, 5, clip_norm), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rule", [AdamW(lr=0.01), LAMB(lr=0.01)], ids=["adamw", "lamb"])
def test_servers_and_threads_do_not_change_a_bit(rule: Rule) -> None:
    alone = run([rule], 3, clip_norm=1.0).parameters()
    for shards, threads in ((2, 1), (3, 1), (1, 3), (2, 2)):
        assert same_bits(alone, run([rule], 3, clip_norm=1.0, shards=shards, threads=threads).parameters())
    assert not same_bits(alone, run([rule], 3, clip_norm=1.001).parameters()), "the comparison can tell"


FORESEEN: dict[str, tuple[int, ...]] = {  # how many of the five contributors were combined before the commit came
    "some": (3,),
    "more and more": (2, 4),
    "all": (5,),
    "with another weight": (-3,),
    "of a contribution that was begun anew": (0,),
}


@pytest.mark.parametrize("foreseen", FORESEEN)
@pytest.mark.parametrize(("rule", "dtype"), [(AdamW(lr=0.01), "float32"), (LAMB(lr=0.01), "bfloat16")])
def test_combining_early_does_not_change_a_bit(rule: Rule, dtype: str, foreseen: str) -> None:
    shares = (0.3, 0.1, 0.2, 0.25, 0.15)

    def trained(foresee: Callable[[Store, tuple[Weighted, ...]], None]) -> list[torch.Tensor]:
        cluster = Cluster(table([rule], dtype=dtype, clip_norm=1.0), shards=2, threads=2)
        cluster.seed(randoms(1, dtype))
        for step in range(3):
            tensors: list[Tensors] = [randoms(10 * step + worker, dtype) for worker in range(5)]
            tensors[1] = [None, *tensors[1][1:]]  # no gradient reaches its first tensor
            cluster.step(tensors, (rule.lr,), shares, foresee)
        return cluster.parameters()

    def early(store: Store, contributors: tuple[Weighted, ...]) -> None:
        for count in FORESEEN[foreseen]:
            found = contributors[: abs(count)]
            if count < 0:
                found = (*found[:1], msgspec.structs.replace(found[1], weight=0.5), *found[2:])
            if count == 0:
                anew = msgspec.structs.replace(contributors[1].contributor, attempt=1)
                found = (contributors[0], Weighted(anew, contributors[1].weight))
            store.run(k.Combine(found))

    assert same_bits(trained(lambda store, contributors: None), trained(early))


def test_a_combination_that_has_to_hurry_is_used_as_far_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    original = Passes.update

    def update(self: Passes, *arguments: Any) -> None:
        used.append(len(arguments[3]))
        original(self, *arguments)

    monkeypatch.setattr(Passes, "update", update)

    def trained(blocks: int) -> list[torch.Tensor]:
        cluster = Cluster(table([AdamW(lr=0.01)]))
        cluster.seed(randoms(1))
        used.clear()  # of the kernels' warming

        def foresee(store: Store, contributors: tuple[Weighted, ...]) -> None:
            codec, calls = codec_for("float32"), iter(range(2 * blocks - 1))
            add = codec.add

            def counted(*arguments: Any) -> None:
                store.hurry(next(calls, None) is None)
                add(*arguments)

            monkeypatch.setitem(codec.__dict__, "add", counted)
            store.hurry(False)
            store.run(k.Combine(contributors[:3]))
            monkeypatch.setitem(codec.__dict__, "add", add)

        cluster.step([randoms(worker) for worker in range(4)], (0.01,), (0.25,) * 4, foresee if blocks else None)
        return cluster.parameters()

    whole = trained(0)
    assert set(used) == {4}
    assert same_bits(whole, trained(2))
    assert used.count(1) == 2 and used.count(4) == len(used) - 2 > 0  # a sum and the last one; all four anew


@pytest.mark.parametrize(
    ("rules", "dtype"),
    [([AdamW(), AdamW(lr=0.1)], "float32"), ([LAMB()], "bfloat16"), ([SGD(momentum=0.9)], "float16")],
    ids=["adamw", "lamb", "sgd"],
)
def test_no_step_waits_for_a_compiler(rules: list[Rule], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(table(rules, dtype=dtype, clip_norm=1.0))

    def refuse(kernel: Dispatcher, signature: object) -> None:
        raise AssertionError(f"{kernel} compiles, or loads from disk, during a step")

    monkeypatch.setattr(Dispatcher, "compile", refuse)
    cluster.seed(randoms(1, dtype))
    for step in range(1, 5):
        contributions = [randoms(10 * step + worker, dtype) for worker in range(step)]
        cluster.step(contributions, tuple(rule.lr for rule in rules), (1 / step,) * step)
    assert all(tensor.isfinite().all() for tensor in cluster.parameters())


def test_lamb_ratio_is_of_whole_tensors() -> None:
    rule = LAMB(lr=0.01, weight_decay=0.1)
    ours = run([rule], 1, clip_norm=1.0, shards=3).parameters()
    grads = [
        one.double() * WEIGHTS[0] + other * WEIGHTS[1] for one, other in zip(randoms(10), randoms(11), strict=True)
    ]
    norm = torch.stack([g.norm() for g in grads]).norm()
    for before, gradient, after in zip(randoms(1), grads, ours, strict=True):
        g = gradient * min(1.0, 1.0 / (float(norm) + 1e-6))
        u = g / (g.abs() + rule.eps) + rule.weight_decay * before.double()
        wanted = before - 0.01 * before.double().norm() / u.norm() * u
        torch.testing.assert_close(after.double(), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_tensors_have_float32_masters(dtype: str) -> None:
    """Updates far below a half's resolution add up on the server; what travels is rounded once."""
    cluster = Cluster(table([SGD(lr=1.0)], ((5000,),), dtype))
    cluster.seed([torch.ones(5000, dtype=TORCH[dtype])])
    master = torch.ones(5000)
    for step in range(64):
        one, other = (randoms(2 * step + i, dtype, ((5000,),)) for i in range(2))
        one[0].mul_(2**-12)
        other[0].mul_(2**-12)
        cluster.step([one, other], (1.0,))
        master -= one[0].float() * WEIGHTS[0] + other[0].float() * WEIGHTS[1]
    assert not torch.equal(master, torch.ones(5000))
    assert torch.equal(cluster.parameters()[0], master.to(TORCH[dtype]))


def test_unused_blocks_keep_parameters_and_step_count() -> None:
    """torch skips a parameter whose grad is None; a block that only one worker used counts zero for the other."""
    cluster = Cluster(table([AdamW(lr=0.01)]), shards=2)
    cluster.seed(randoms(1))
    parameters = [tensor.requires_grad_() for tensor in randoms(1)]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for step in range(1, 5):
        one: list[torch.Tensor | None] = list(randoms(10 * step))
        other: list[torch.Tensor | None] = list(randoms(10 * step + 1))
        one[1] = None
        if step % 2:
            one[0] = other[0] = other[1] = None
        for i, parameter in enumerate(parameters):
            terms = [g[i] * w for g, w in zip((one, other), WEIGHTS, strict=True) if g[i] is not None]
            parameter.grad = sum(terms[1:], terms[0]) if terms else None
        optimizer.step()
        cluster.step([one, other], (0.01,))
    for ours, theirs in zip(cluster.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=2e-6, atol=2e-6)


def test_a_commit_of_nobody_changes_nothing() -> None:
    cluster = run([AdamW()], 1, clip_norm=1.0)
    before = cluster.parameters()
    cluster.step([], (0.1,), weights=())
    cluster.step([[None] * len(SHAPES)], (0.1,), weights=(1.0,))
    assert same_bits(before, cluster.parameters())


def test_only_delivered_blocks_count_and_stay_as_they_are() -> None:
    store = Store(snapshot)
    store.run(k.CreateTable(table([SGD()], ((4,), (4,))), 0, 1))
    one = Contributor(0, 1, 1, 0)
    for view, value in zip(store.stage(one, [0, 1]), (1.0, 2.0), strict=True):
        view[:] = np.full(4, value, np.float32).view(np.uint8).data
    store.delivered(one, [0])
    (again,) = store.stage(one, [0])  # a repeated frame, with other bytes
    again[:] = bytes(len(again))
    store.run(k.Apply(1, (Weighted(one, 1.0),), (1.0,), ()))
    first, second = (np.frombuffer(view, np.float32) for view in store.parameters([0, 1]))
    assert first.tolist() == [-1.0] * 4
    assert second.tolist() == [0.0] * 4, "staged, but never delivered"


def test_masters_are_sent_from_where_they_lie_when_they_keep_still() -> None:
    cluster = run([SGD(lr=0.1)], 1)
    store = cluster.stores[0]
    sending = store.parameters([0], still=True)[0]
    assert np.shares_memory(np.frombuffer(sending, np.float32), store.table.dense.parameters[0])
    with pytest.raises(TypeError, match="read-only"):
        sending[0] = 1


def test_published_bytes_outlive_later_commits_when_others_go_on() -> None:
    cluster = Cluster(table([SGD(lr=0.1)], policy="async"))
    cluster.seed(randoms(1))
    store = cluster.stores[0]
    sending = store.parameters([0])[0]
    before = bytes(sending)
    assert store.parameters([0])[0].obj is sending.obj, "one version is encoded once for all workers"
    for _ in range(3):
        cluster.step([randoms(5), randoms(6)], (0.1,))
        assert bytes(store.parameters([0])[0]) != before
        assert bytes(sending) == before
    with pytest.raises(TypeError, match="read-only"):
        sending[0] = 1


def test_memory_is_reused_but_never_while_referenced() -> None:
    store = Store(snapshot)
    store.run(k.CreateTable(table([SGD()], ((1000,),)), 0, 1))
    one, two = Contributor(0, 1, 1, 0), Contributor(0, 1, 2, 0)

    def where(view: memoryview) -> int:
        return int(np.frombuffer(view, np.uint8).ctypes.data)

    (receiving,) = store.stage(one, [0])
    first = where(receiving)
    assert where(store.stage(one, [0])[0]) == first, "a repeated frame that came before the first was complete"
    assert store.contributors() == (one,)
    store.free([one])
    assert store.contributors() == ()
    assert where(store.stage(two, [0])[0]) != first, "a socket may still receive into the old memory"
    store.free([two])
    del receiving
    reused = {where(store.stage(Contributor(w, 1, 3, 0), [0])[0]) for w in range(2)}
    assert first in reused
    assert store.table.arenas.idle == 0


def test_snapshot_loads_on_any_number_of_servers(tmp_path: Path) -> None:
    rule = AdamW(lr=0.01)
    made = run([rule], 3, clip_norm=1.0, shards=2)
    made.save(tmp_path)
    gradients = [randoms(70), randoms(71)]
    expected = made.parameters()
    made.step(gradients, (0.01,))
    for shards in (1, 2, 3):
        loaded = Cluster(made.spec, shards)
        assert [store.load(tmp_path) for store in loaded.stores] == [3] * shards
        assert same_bits(expected, loaded.parameters())
        loaded.step(gradients, (0.01,))  # states and step counts came along
        assert same_bits(made.parameters(), loaded.parameters())
    exported = snapshot.read_parameters(tmp_path)
    assert [exported[item.name].shape for item in made.spec.tensors] == list(SHAPES)
    assert same_bits(expected, [torch.from_numpy(exported[item.name]) for item in made.spec.tensors])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (table([SGD(momentum=0.9)]), r"manifest\.json: the snapshot's rule is 'adamw', this job's is 'sgd'"),
        (table([AdamW()], SHAPES[:3]), r"tensor 't\|3' is \(\) in the snapshot and absent in this job's model"),
        (
            table([AdamW()], ((301, 300), *SHAPES[1:])),
            r"tensor 't\|0' is \(300, 301\) in the snapshot and \(301, 300\)",
        ),
    ],
)
def test_snapshot_of_another_table_is_refused(tmp_path: Path, spec: TableSpec, message: str) -> None:
    run([AdamW()], 1).save(tmp_path)
    with pytest.raises(SnapshotError, match=message):
        Cluster(spec).stores[0].load(tmp_path)


def test_snapshot_without_the_states_of_new_settings_is_refused(tmp_path: Path) -> None:
    run([SGD(lr=0.1)], 1).save(tmp_path)
    with pytest.raises(SnapshotError, match=r"none of its files holds .*momentum_buffer' \(5 entries are missing\)"):
        Cluster(table([SGD(momentum=0.9)])).stores[0].load(tmp_path)


def test_incomplete_seed_and_unknown_rules_are_refused() -> None:
    cluster = Cluster(table([SGD()]))
    cluster.push(Contributor(4, 1, 0, 0), [*randoms(1)[:3], None])
    with pytest.raises(ProtocolError, match="the seed of worker 4 lacks 1 blocks"):
        cluster.stores[0].run(k.Seed(0, Contributor(4, 1, 0, 0)))
    unknown = TableSpec((TensorSpec("t", (1,), "float64", 0),), "sgd", ((),), PolicySpec("sync"))
    with pytest.raises(ConfigurationError, match="'float64' does not travel"):
        Store(snapshot).run(k.CreateTable(unknown, 0, 1))


def test_a_server_may_hold_no_block(tmp_path: Path) -> None:
    spec = table([AdamW()], ((3,),), clip_norm=1.0)
    cluster = Cluster(spec, shards=3)
    cluster.seed(randoms(1, shapes=((3,),)))
    cluster.step([randoms(2, shapes=((3,),))], (0.1,), weights=(1.0,))
    cluster.save(tmp_path)
    assert cluster.parameters()[0].isfinite().all()
    assert [store.load(tmp_path) for store in cluster.stores] == [1, 1, 1]


@pytest.mark.parametrize("shards", [1, 3])
def test_weighed_by_tokens_a_block_is_the_mean_of_those_who_have_it(shards: int) -> None:
    """Contributors of one commit may send different fragments: who sends none of a block takes no part in its mean."""
    spec = msgspec.structs.replace(table([SGD(0.1)]), reduction=TOKENS)
    cluster = Cluster(spec, shards)
    start, one, other = randoms(0), randoms(1), randoms(2)
    cluster.seed(start)
    cluster.step([[one[0], one[1], None, None], [None, other[1], other[2], None]], (0.1,), weights=(0.8, 0.4))
    mean = [one[0], (0.8 * one[1] + 0.4 * other[1]) / 1.2, other[2], torch.zeros(())]
    for found, before, gradient in zip(cluster.parameters(), start, mean, strict=True):
        torch.testing.assert_close(found, before - 0.1 * gradient)


def test_merged_radially_lengths_and_directions_are_averaged_apart() -> None:
    """mean(||d||) unit(mean(unit(d))) of each tensor, over those who have it; others by plain mean."""
    spec = msgspec.structs.replace(table([SGD(1.0)]), reduction=TOKENS, radial=(0, 1, 2))
    weights = (0.5, 0.25, 0.25)
    start, one, two, three = randoms(0), randoms(1), [5 * each for each in randoms(2)], randoms(3)
    three[1] = torch.zeros_like(three[1])  # its direction counts for nothing, its length as 0
    sent: list[Tensors] = [[*one[:2], None, one[3]], two, [*three[:2], None, three[3]]]
    found = []
    for shards in (1, 3):
        cluster = Cluster(spec, shards)
        cluster.seed(start)
        cluster.step(sent, (1.0,), weights)
        found.append(cluster.parameters())
    assert same_bits(*found)
    for index, (before, after) in enumerate(zip(start, found[0], strict=True)):
        pairs = [(w, d[index].double()) for w, d in zip(weights, sent, strict=True) if d[index] is not None]
        total = sum(w for w, _ in pairs)
        merged = sum(w * d for w, d in pairs) / total
        if index != 3:
            merged = sum(w * d / d.norm() for w, d in pairs if d.norm() > 0) / total
            merged *= sum(w * d.norm() for w, d in pairs) / total / merged.norm()
        torch.testing.assert_close(before - after, merged.float(), rtol=1e-4, atol=1e-5)


def test_weighed_by_tokens_a_sum_for_replicas_has_the_bits_of_what_is_applied_in_passing() -> None:
    spec = msgspec.structs.replace(table([SGD(0.1)]), reduction=TOKENS)
    sent: list[Tensors] = [[*randoms(1)[:2], None, None], [None, *randoms(2)[1:3], None], randoms(3)]
    who = tuple(Weighted(Contributor(worker, 1, 1, 0), weight) for worker, weight in enumerate((0.5, 0.3, 0.2)))
    found = []
    for replicated in (False, True):
        cluster = Cluster(spec)
        (store,) = cluster.stores = [Store(snapshot)]
        store.run(k.CreateTable(spec, 0, 1, replicated))
        cluster.seed(randoms(0))
        for item, tensors in zip(who, sent, strict=True):
            cluster.push(item.contributor, tensors)
        if replicated:
            store.run(k.Combine(who[:2], held=True))  # a proposal of which nothing comes
            store.run(k.Combine(who, held=True))
        store.run(k.Apply(1, who, (0.1,), (), summed=replicated))
        found.append(cluster.parameters())
    assert same_bits(*found)
