"""Delay compensation: the formula of the paper, whoever holds what; and stale gradients that do less harm."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
import torch

from shoal.core import machine as k
from shoal.core.bases import Bases
from shoal.core.store import Store
from shoal.errors import ConfigurationError
from shoal.optim import SGD, phases
from shoal.policy import Async, Bounded, DelayCompensated, from_spec, in_words, parsed, rests
from shoal.storage import snapshot
from shoal.vocabulary import Contributor, Weighted
from shoal.wire import messages as m

from .stores import Cluster, randoms, same_bits, table

RATE = 0.1
CONSTANT, ADAPTIVE = DelayCompensated(0.3, 0.0), DelayCompensated(2.0, 0.95)
BASES = ((1, 0), (1, 1), (2, 0), (2, 2), (3, 1))  # (worker, base) of each update: its worker computed on that version


@dataclass
class Delayed(Cluster):
    """Updates one by one, each of a gradient computed on an earlier version."""

    needed: list[int] = field(default_factory=list)  # versions that some worker computes on

    def one(self, form: DelayCompensated, worker: int, base: int, gradient: list[torch.Tensor], weight: float) -> None:
        present, self.seq = self.seq, self.seq + 1
        who = Contributor(worker, 1, self.seq, 0)
        self.push(who, gradient)
        item = (Weighted(who, weight),)
        compensation = k.Compensation(form.rate, form.mean_square, base, present, tuple(self.needed))
        factors: tuple[tuple[str, tuple[float, ...]], ...] = ()
        for phase in phases.phases(self.spec):
            measure = k.Measure(self.seq, phase, item, (RATE,), factors, False, compensation)
            partials = {block: values for store in self.stores for block, values in store.run(measure)}
            factors += ((phase, phases.reduce(self.spec, phase, partials)),)
        for store in self.stores:
            store.run(k.Apply(self.seq, item, (RATE,), factors, False, compensation))
            store.free([who])


def played(form: DelayCompensated, shards: int, threads: int, clip_norm: float | None = None) -> Delayed:
    cluster = Delayed(table([SGD(RATE)], clip_norm=clip_norm, policy="async"), shards, threads)
    cluster.seed(randoms(0))
    for number, (worker, base) in enumerate(BASES):
        cluster.needed = [later for _, later in BASES[number + 1 :] if later <= number]
        cluster.one(form, worker, base, randoms(10 + number), 0.5)
    return cluster


def by_hand(form: DelayCompensated, clip_norm: float | None = None) -> list[np.ndarray]:
    """The same in numpy, as the paper has it."""
    versions = [[item.numpy().copy() for item in randoms(0)]]
    squares = [np.zeros_like(item) for item in versions[0]]
    half, one = np.float32(0.5), np.float32(1)
    kept = np.float32(form.mean_square)
    for number, (_, base) in enumerate(BASES):
        gradients, now, then = [half * g.numpy() for g in randoms(10 + number)], versions[-1], versions[base]
        squares = [kept * s + (one - kept) * (g * g) for s, g in zip(squares, gradients, strict=True)]
        if form.mean_square:
            rates = [np.float32(form.rate) / np.sqrt(s + np.float32(1e-7)) for s in squares]
        else:
            rates = [np.float32(form.rate)] * len(squares)
        terms = zip(rates, gradients, now, then, strict=True)
        made_up = [g + rate * (g * g) * (after - before) for rate, g, after, before in terms]
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in made_up))
        factor = np.float32(min(1.0, clip_norm / norm)) if clip_norm else one
        versions.append([p - np.float32(RATE) * (factor * g) for p, g in zip(now, made_up, strict=True)])
    return versions[-1]


@pytest.mark.parametrize("clip_norm", [None, 150.0])
@pytest.mark.parametrize("form", [CONSTANT, ADAPTIVE], ids=["constant", "adaptive"])
def test_servers_compute_what_the_paper_says(form: DelayCompensated, clip_norm: float | None) -> None:
    found = played(form, 1, 1, clip_norm).parameters()
    for tensor, right in zip(found, by_hand(form, clip_norm), strict=True):
        np.testing.assert_allclose(tensor.numpy(), right, rtol=2e-5, atol=2e-6)
    naive = by_hand(DelayCompensated(1e-30, 0.0), clip_norm)
    assert not np.allclose(found[0].numpy(), naive[0], rtol=1e-3), "it matters"


@pytest.mark.parametrize("form", [CONSTANT, ADAPTIVE], ids=["constant", "adaptive"])
def test_any_number_of_servers_and_threads_gives_the_same_bits(form: DelayCompensated) -> None:
    one = played(form, 1, 1).parameters()
    for shards, threads in ((2, 1), (3, 2), (1, 4)):
        assert same_bits(one, played(form, shards, threads).parameters())


@pytest.mark.parametrize("form", [CONSTANT, ADAPTIVE], ids=["constant", "adaptive"])
def test_what_replicas_are_sent_is_compensated_already(form: DelayCompensated) -> None:
    """The sum lies with all replicas before it is in the log; one that is proposed twice joins the squares once."""
    spec = table([SGD(RATE)], policy="async")
    alone, leading = played(form, 1, 1), Delayed(spec)
    leading.stores = [Store(snapshot)]
    (store,) = leading.stores
    store.run(k.CreateTable(spec, 0, 1, replicated=True))
    leading.seed(randoms(0))
    for number, (worker, base) in enumerate(BASES):
        who = Contributor(worker, 1, number + 1, 0)
        leading.push(who, randoms(10 + number))
        needed = tuple(later for _, later in BASES[number + 1 :] if later <= number)
        compensation = k.Compensation(form.rate, form.mean_square, base, number, needed)
        item = (Weighted(who, 0.5),)
        for _ in range(2):
            store.run(k.Combine(item, held=True, compensation=compensation))
        store.run(k.Apply(number + 1, item, (RATE,), (), summed=True, compensation=compensation))
        store.free([who])
    assert same_bits(alone.parameters(), leading.parameters())


def test_a_gradient_of_the_present_parameters_is_taken_as_it_is() -> None:
    made_up, plain = (Delayed(table([SGD(RATE)], policy="async")) for _ in range(2))
    for cluster in (made_up, plain):
        cluster.seed(randoms(0))
    made_up.one(ADAPTIVE, 0, 0, randoms(1), 1.0)
    plain.step([randoms(1)], (RATE,), weights=(1.0,))
    assert same_bits(made_up.parameters(), plain.parameters())


def test_one_copy_serves_all_workers_of_a_version_and_goes_with_the_last() -> None:
    cluster = Delayed(table([SGD(RATE)], policy="async"))
    (store,) = cluster.stores
    cluster.seed(randoms(0))
    kept = []
    for needed in ([0], [0, 1], [0, 1], [1], []):
        cluster.needed = needed
        cluster.one(CONSTANT, 0, cluster.seq, randoms(cluster.seq), 1.0)
        kept.append(store.compensator.versions)
    assert kept == [(0,), (0, 1), (0, 1), (1,), ()]


def test_what_nobody_knows_any_more_is_taken_as_it_is() -> None:
    found = []
    for base in (k.UNKNOWN, 0):  # 0: was given, but no copy was kept, by a server that did not lead then
        cluster = Delayed(table([SGD(RATE)], policy="async"))
        cluster.seed(randoms(0))
        cluster.one(CONSTANT, 0, 0, randoms(1), 1.0)
        cluster.one(CONSTANT, 1, base, randoms(2), 1.0)
        found.append(cluster.parameters())
    assert same_bits(*found)


def test_with_a_pull_codec_the_worker_was_given_the_published_copy() -> None:
    spec = table([SGD(RATE)], shapes=((600,),), policy="async")
    spec = msgspec.structs.replace(spec, tensors=(msgspec.structs.replace(spec.tensors[0], pull="int4"),))
    cluster = Delayed(spec)
    ((start,), (first,), (second,)) = (randoms(seed, shapes=((600,),)) for seed in range(3))
    cluster.seed([start])
    cluster.one(CONSTANT, 0, 0, [first], 1.0)
    dense = cluster.stores[0].table.dense
    now, then = dense.parameters[0].copy(), dense.published[0].copy()
    assert np.abs(now - then).max() > 0.01, "int4 loses something"
    cluster.one(CONSTANT, 0, 1, [second], 1.0)
    g = second.numpy()
    right = now - np.float32(RATE) * (g + np.float32(0.3) * (g * g) * (now - then))
    np.testing.assert_allclose(dense.parameters[0], right, rtol=1e-5, atol=1e-6)


def test_the_log_says_what_each_worker_was_given() -> None:
    bases = Bases()
    bases.add(m.Commit(1, 1, "seed", release=((0, 1), (1, 2))), 1)
    bases.add(m.Commit(1, 2, "update", closes=((0, 1, 1),)), 2)
    assert bases.known == {1: (2, {1: 1})}, "who has settled what it computed waits, and computes on nothing"
    bases.add(m.Commit(1, 3, "cut", release=((0, 1),)), 2)
    assert bases.known[0] == (1, {3: 2}), "a cut changes nothing: its parameters are those of the update before"
    stale = Weighted(Contributor(1, 2, 1, 0), 1.0, version=1)
    assert bases.compensation(ADAPTIVE, [stale], 2) == k.Compensation(2.0, 0.95, base=1, present=2, needed=(2,))
    other_life = Weighted(Contributor(1, 9, 1, 0), 1.0, version=1)
    assert bases.compensation(ADAPTIVE, [other_life], 2).base == k.UNKNOWN
    bases.add(m.Commit(1, 4, "cut", fences=((1, 2),)), 2)
    assert list(bases.known) == [0], "the dead hold no copy"


def test_who_asks_again_for_what_it_has_may_compute_on_either() -> None:
    """Word that a version is gone may come late, when the worker has it from a repetition."""
    bases = Bases()
    bases.add(m.Commit(1, 3, "cut", release=((0, 1),)), 2)
    bases.add(m.Commit(1, 6, "cut", release=((0, 1),)), 5)
    for version, base in ((3, 2), (6, 5)):
        item = Weighted(Contributor(0, 1, 1, 0), 1.0, version=version)
        assert bases.compensation(ADAPTIVE, [item], 5).base == base
    assert bases.compensation(ADAPTIVE, [Weighted(Contributor(1, 1, 1, 0), 1.0)], 5).needed == (2, 5)


def test_the_ranks_of_a_group_have_one_base_or_none() -> None:
    bases = Bases()
    bases.add(m.Commit(1, 3, "cut", release=((0, 1), (1, 1), (2, 1))), 2)
    ranks = [Weighted(Contributor(rank, 1, 1, 0), 1.0, version=3) for rank in range(2)]
    assert bases.compensation(ADAPTIVE, ranks, 5) == k.Compensation(2.0, 0.95, base=2, present=5, needed=(2,))
    bases.add(m.Commit(1, 6, "cut", release=((1, 1),)), 5)
    apart = [ranks[0], Weighted(Contributor(1, 1, 1, 0), 1.0, version=6)]
    assert bases.compensation(ADAPTIVE, apart, 5).base == k.UNKNOWN


def end_of_a_quadratic(form: DelayCompensated | None, age: int = 4) -> float:
    """How far from its minimum sum of h x^2 / 2 is after 40 steps of gradients that are `age` updates old."""
    curvature = torch.linspace(0.5, 3.0, 50)
    cluster = Delayed(table([SGD(RATE)], shapes=((50,),), policy="async"))
    start = torch.full((50,), 1.5)
    cluster.seed([start])
    seen = [start]
    for number in range(40):
        base = max(0, number - age)
        cluster.needed = list(range(max(0, number + 1 - age), number + 1))
        gradient = [curvature * seen[base]]
        cluster.one(form or CONSTANT, number % (age + 1), base if form else k.UNKNOWN, gradient, 1.0)
        seen.append(cluster.parameters()[0].clone())
    return float((curvature * seen[-1] ** 2).sum() / 2)


def test_stale_gradients_of_a_quadratic_do_less_harm() -> None:
    naive = end_of_a_quadratic(None)
    assert end_of_a_quadratic(DelayCompensated(0.5, 0.0)) < 0.8 * naive
    assert end_of_a_quadratic(DelayCompensated(1.0, 0.95)) < 0.8 * naive


def test_the_policy_is_written_sent_and_checked() -> None:
    policy = Async(weight=DelayCompensated(0.5), age_max=16)
    words = "Async(weight=DelayCompensated(rate=0.5, mean_square=0.95), age_max=16)"
    assert in_words(policy.spec) == words
    assert parsed(words) == parsed(f"shoal.{words}".replace("Delay", "shoal.Delay")) == policy == from_spec(policy.spec)
    assert rests(Async(), policy) and not rests(policy, policy), "what workers were given must be known from then on"
    assert Bounded(2, policy.weight).compensation == DelayCompensated(0.5)
    for wrong in ({"rate": 0.0}, {"rate": True}, {"mean_square": 1.0}, {"mean_square": -0.1}, {"rate": float("nan")}):
        with pytest.raises(ConfigurationError, match="as in DelayCompensated"):
            DelayCompensated(**wrong)
    with pytest.raises(ConfigurationError, match="shoal.DelayCompensated"):
        Async(weight="delay")  # type: ignore[arg-type]


def test_a_group_has_a_base_when_its_ranks_were_given_the_same() -> None:
    bases = Bases()
    ranks = [Weighted(Contributor(worker, 1, 1, 0), 1.0, version=3) for worker in (0, 1)]
    bases.add(m.Commit(1, 3, "update", release=((0, 1), (1, 1), (2, 1))), 3)
    assert bases.compensation(ADAPTIVE, ranks, 4) == k.Compensation(2.0, 0.95, base=3, present=4, needed=(3,))
    bases.add(m.Commit(1, 5, "cut", release=((1, 1),)), 4)
    torn = [ranks[0], Weighted(ranks[1].contributor, 1.0, version=5)]
    assert bases.compensation(ADAPTIVE, torn, 5).base == k.UNKNOWN
