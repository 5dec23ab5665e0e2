"""Local steps: what workers come to is DiLoCo as its paper has it, whoever holds the global parameters."""

from __future__ import annotations

import copy
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from shoal.adapters.local_steps import LocalSteps, dealt
from shoal.adapters.torch import LocalOptimizer, loader
from shoal.client import connect
from shoal.errors import ConfigurationError
from shoal.optim import SGD, AdamW, DelayedNesterov, Nesterov, Rule
from shoal.policy import Async, Bounded, Decoupled, DelayCompensated, Policy, Sync

from .test_in_process import gap, mlp, together

__all__ = ["together"]  # a fixture

EVERY, WINDOWS = 4, 5
Outer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]  # makes it over parameters


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1000 * rank + step))


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
    optimizer.step()


def diloco(model: nn.Module, workers: int, outer: torch.optim.Optimizer, steps: int) -> nn.Module:
    """Algorithm 1 of the paper in plain torch, in one process. outer: over the model's parameters, the global ones."""
    own = [copy.deepcopy(model) for _ in range(workers)]
    inner = [adamw(each) for each in own]
    for start in range(0, steps, EVERY):
        for rank, (each, optimizer) in enumerate(zip(own, inner, strict=True)):
            each.load_state_dict(model.state_dict())
            for step in range(start, min(start + EVERY, steps)):
                descend(each, optimizer, batch(rank, step))
        for parameter, *found in zip(model.parameters(), *(each.parameters() for each in own), strict=True):
            parameter.grad = torch.stack([parameter.detach() - local.detach() for local in found]).mean(0)
        outer.step()
    return model


def train(worker, model: nn.Module, outer: Rule, steps: int, push: str = "") -> nn.Module:
    opt = LocalOptimizer(worker, model, LocalSteps(EVERY, adamw(model), outer, rate_rule=False), push)
    for step in range(steps):
        descend(model, opt, batch(worker.rank, step))
    opt.synchronise()
    return model


@pytest.mark.filterwarnings("ignore:.*known to harm")  # these windows are short
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("outer", "reference"),
    [
        (Nesterov(), lambda model: torch.optim.SGD(model.parameters(), 0.7, momentum=0.9, nesterov=True)),
        (SGD(lr=1.0), lambda model: torch.optim.SGD(model.parameters(), 1.0)),
        (AdamW(lr=0.1), lambda model: torch.optim.AdamW(model.parameters(), 0.1)),
    ],
    ids=["diloco", "averaging", "adamw outside"],
)
def test_the_global_parameters_are_those_of_the_paper(together, workers, outer, reference):
    steps = EVERY * WINDOWS + 1  # the last window is cut short
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    expected = diloco(twin, workers, reference(twin), steps)
    results = together(workers, lambda worker: train(worker, copy.deepcopy(model), outer, steps))
    for found in results:
        assert isinstance(found, nn.Module), found
        assert gap(found, expected) < 1e-5


def streaming(model: nn.Module, workers: int, outer: Outer, steps: int, local: LocalSteps) -> nn.Module:
    """Algorithm 2 of Streaming DiLoCo in plain torch, in one process. model: the global parameters."""
    parts = dealt([parameter.numel() for parameter in model.parameters()], local.fragments)
    globals_ = list(model.parameters())
    rules = [outer([globals_[index] for index in part]) for part in parts]
    own = [copy.deepcopy(model) for _ in range(workers)]
    inner = [adamw(each) for each in own]
    begun = [[each.detach().clone() for each in globals_] for _ in range(workers)]
    due: dict[int, list[int]] = {}  # fragments by the step after which they are taken

    def take(part: int, mix: float) -> None:
        for rank, each in enumerate(own):
            mine = list(each.parameters())
            for index in parts[part]:
                mine[index].data = mix * mine[index].data + (1 - mix) * globals_[index].data
                begun[rank][index] = globals_[index].detach().clone()

    def combine(part: int) -> None:
        for index in parts[part]:
            found = [
                start[index] - list(each.parameters())[index].detach() for each, start in zip(own, begun, strict=True)
            ]
            globals_[index].grad = torch.stack(found).mean(0)
        rules[part].step()

    for step in range(1, steps + 1):
        for rank, (each, optimizer) in enumerate(zip(own, inner, strict=True)):
            descend(each, optimizer, batch(rank, step - 1))
        for part in due.pop(step, ()):
            take(part, local.mix)
        if step % local.stride == 0:
            part = (step // local.stride - 1) % local.fragments
            combine(part)
            due.setdefault(step + local.overlap, []).append(part)
            if not local.overlap:
                take(*due.pop(step), local.mix)
    for late in due.values():
        for part in late:
            take(part, local.mix)
    last = (steps // local.stride - 1) % local.fragments
    for part in range(local.fragments):
        if steps % local.stride or part != last:  # it took steps since it left
            combine(part)
    return model


@pytest.mark.filterwarnings("ignore:.*known to harm")
@pytest.mark.parametrize(
    ("fragments", "overlap", "mix"), [(1, 0, 0.5), (1, 3, 0.5), (2, 0, 0.0), (2, 2, 0.5), (2, 3, 0.25), (3, 1, 0.0)]
)
@pytest.mark.parametrize("steps", [24, 29])
def test_fragments_are_those_of_the_streaming_paper(together, fragments, overlap, mix, steps):
    """Whatever is combined late, in turn, and blended: servers and workers end with the paper's global parameters."""
    torch.manual_seed(0)
    model = mlp()

    def local(each: nn.Module) -> LocalSteps:
        return LocalSteps(6, adamw(each), Nesterov(), False, fragments, overlap, mix)

    def learn(worker) -> nn.Module:
        mine = copy.deepcopy(model)
        opt = LocalOptimizer(worker, mine, local(mine))
        for step in range(steps):
            descend(mine, opt, batch(worker.rank, step))
        opt.synchronise()
        return mine

    twin = copy.deepcopy(model)
    expected = streaming(twin, 3, lambda some: torch.optim.SGD(some, 0.7, 0.9, nesterov=True), steps, local(twin))
    for found in together(3, learn):
        assert isinstance(found, nn.Module), found
        assert gap(found, expected) < 1e-5


@pytest.mark.parametrize(("fragments", "overlap", "mix"), [(1, 0, 0.0), (1, 2, 0.5), (2, 1, 0.25)])
def test_one_by_one_each_worker_adds_what_it_came_to_to_whatever_is_there(together, fragments, overlap, mix):
    """Two workers that take turns, so that each one's contribution is a round old when it comes."""
    model = mlp()
    outer, steps, stride = DelayedNesterov(lr=0.7, momentum=0.9, every=2), 24, 6 // fragments
    turns = threading.Barrier(2)

    def learn(worker) -> nn.Module:
        mine = copy.deepcopy(model)
        opt = LocalOptimizer(worker, mine, LocalSteps(6, adamw(mine), outer, True, fragments, overlap, mix, Async()))
        for step in range(steps):
            for rank in range(2):
                turns.wait()
                if rank == worker.rank:
                    descend(mine, opt, batch(rank, step))
                    if opt.outer._binding.begun:
                        worker.finish_step()  # the order of commits is that of the turns
        turns.wait()
        return nn.ParameterList([anchor.detach().clone() for anchor in opt._anchors]) if worker.rank else mine

    found = together(2, learn)[1]
    assert isinstance(found, nn.ParameterList), found

    parts = dealt([parameter.numel() for parameter in model.parameters()], fragments)
    globals_ = [parameter.detach().clone() for parameter in model.parameters()]
    momentum, total, counts = ([torch.zeros_like(each) for each in globals_] for _ in range(3))
    own = [copy.deepcopy(model) for _ in range(2)]
    inner = [adamw(each) for each in own]
    begun = [[each.clone() for each in globals_] for _ in range(2)]
    came: dict[int, tuple[int, list[Tensor]]] = {}
    for step in range(1, steps + 1):
        for rank in range(2):
            mine = list(own[rank].parameters())
            descend(own[rank], inner[rank], batch(rank, step - 1))

            def take(rank: int = rank, mine: list[nn.Parameter] = mine) -> None:
                part, values = came.pop(rank)
                for index in parts[part]:
                    mine[index].data = mix * mine[index].data + (1 - mix) * values[index]
                    begun[rank][index] = values[index]

            if rank in came and step % stride >= overlap:
                take()
            if step % stride == 0:
                part = (step // stride - 1) % fragments
                for index in parts[part]:
                    g = begun[rank][index] - mine[index].detach()
                    counts[index] += 1
                    total[index] += g
                    delayed = 0.0
                    if counts[index].flatten()[0] % 2 == 0:
                        momentum[index], delayed = 0.9 * momentum[index] + total[index] / 2, 1.0
                        total[index] = torch.zeros_like(g)
                    globals_[index] = globals_[index] - 0.7 * (delayed * 0.9 * momentum[index] + g / 2)
                came[rank] = part, list(globals_)
                if not overlap:
                    take()
    for one, other in zip(found, globals_, strict=True):
        assert (one - other).abs().max() < 1e-5


@pytest.mark.parametrize(("fragments", "overlap", "mix"), [(1, 0, 0.0), (2, 0, 0.0), (2, 2, 0.25)])
def test_decoupled_a_worker_carries_what_it_did_meanwhile_over(together, fragments, overlap, mix):
    """Two workers that take turns; what one pushed is back before its next step, and taken from `overlap` steps on."""
    model = mlp()
    steps, stride = 24, 6 // fragments
    turns = threading.Barrier(2)

    def learn(worker) -> nn.Module:
        mine = copy.deepcopy(model)
        sync = Decoupled()
        opt = LocalOptimizer(worker, mine, LocalSteps(6, adamw(mine), SGD(1.0), True, fragments, overlap, mix, sync))
        for step in range(steps):
            for rank in range(2):
                turns.wait()
                if rank == worker.rank:
                    descend(mine, opt, batch(rank, step))
                    worker.finish_step()  # the order of commits is that of the turns
        turns.wait()
        return mine

    found = together(2, learn)
    parts = dealt([parameter.numel() for parameter in model.parameters()], fragments)
    globals_ = [parameter.detach().clone() for parameter in model.parameters()]
    own = [copy.deepcopy(model) for _ in range(2)]
    inner = [adamw(each) for each in own]
    begun = [[each.clone() for each in globals_] for _ in range(2)]
    away: dict[int, tuple[int, list[Tensor], list[Tensor]]] = {}
    taken, clocks = [0, 0], [0, 0]
    for step in range(steps):
        for rank in range(2):
            mine = list(own[rank].parameters())
            descend(own[rank], inner[rank], batch(rank, step))
            taken[rank] += 1
            if rank in away and taken[rank] >= overlap:
                part, left, came = away.pop(rank)
                for index in parts[part]:
                    on_top = came[index] + mine[index].data - left[index]
                    mine[index].data = mix * mine[index].data + (1 - mix) * on_top
                    begun[rank][index] = came[index]
            if taken[rank] >= stride:
                part = clocks[rank] % fragments
                for index in parts[part]:
                    globals_[index] = globals_[index] - (begun[rank][index] - mine[index].detach())
                away[rank] = part, [each.detach().clone() for each in mine], list(globals_)
                taken[rank], clocks[rank] = 0, clocks[rank] + 1
    for one, other in zip(found, own, strict=True):
        assert isinstance(one, nn.Module), one
        assert gap(one, other) < 1e-5


class Counting(nn.Module):
    """Each step of SGD at rate 1 adds 1."""

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.zeros(3))

    def forward(self) -> Tensor:
        return -self.count.sum()


def test_decoupled_a_window_goes_on_until_the_one_before_is_back_and_weighs_by_its_tokens(together):
    """Two workers in windows of 4, both needed. The first takes 14 steps before the second has taken 4."""
    meeting = threading.Barrier(2, timeout=30)

    def count(worker) -> list[float]:
        model = Counting()
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        opt = LocalOptimizer(worker, model, LocalSteps(4, inner, SGD(1.0), sync=Decoupled(quorum=2)))

        def steps(number: int) -> None:
            for _ in range(number):
                opt.zero_grad()
                model().backward()
                opt.step()

        seen: list[float] = []
        if worker.rank == 0:
            steps(14)
        meeting.wait()
        if worker.rank == 1:
            steps(4)
        for _ in range(2):
            worker.finish_step()  # the commit of both is there
            meeting.wait()
            steps(1 if worker.rank == 0 else 4)  # and is taken; who has done 4 or more since pushes
            seen.append(float(model.count.detach()[0]))
        return seen

    first, second = together(2, count)
    assert isinstance(first, list) and isinstance(second, list), (first, second)
    # Both come to 4; the first goes on from there with the 11 steps that it took meanwhile, the second with its 4.
    assert first[0] == 4 + 11 and second[0] == 4 + 4
    combined = 4 + (11 * 11 + 4 * 4) / (11 + 4)  # a token a step: tokens**2 / steps of each
    assert first[1] == pytest.approx(combined + 1) and second[1] == pytest.approx(combined + 4)


def test_merged_radially_a_window_is_as_long_as_those_of_its_workers(together):
    """Two workers go at right angles; an embedding is averaged plainly."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.own = nn.Embedding(1, 2, _weight=torch.zeros(1, 2)), nn.Parameter(torch.zeros(2))

    def walk(worker) -> list[list[float]]:
        model = Two()
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        opt = LocalOptimizer(worker, model, LocalSteps(3, inner, SGD(1.0), merge="radial"))
        for _ in range(3):
            opt.zero_grad()
            (-model.words.weight[0, worker.rank] - model.own[worker.rank]).backward()
            opt.step()
        return [model.words.weight[0].tolist(), model.own.tolist()]

    for words, own in together(2, walk):
        assert words == [1.5, 1.5]
        assert own == pytest.approx([3 / 2**0.5] * 2), "3 long, as each worker's"


def test_fragments_weigh_alike_and_take_equal_layers_in_turn():
    assert dealt([64, 16, 64, 16, 64, 16, 64, 16], 2) == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert dealt([100, 1, 1, 1], 2) == ((0,), (1, 2, 3))
    assert dealt([3, 3, 3], 1) == ((0, 1, 2),)


@pytest.mark.filterwarnings("ignore:.*known to harm")
def test_differences_travel_in_a_codec(together):
    torch.manual_seed(0)
    model = mlp()
    whole, packed = (
        together(2, lambda worker, push=push: train(worker, copy.deepcopy(model), Nesterov(), 40, push))[0]
        for push in ("", "e3m0")
    )
    assert 0 < gap(whole, packed) < 0.2 * gap(whole, model)


@pytest.mark.parametrize("leases", [False, True], ids=["own batches", "ps.loader"])
def test_who_is_slower_takes_fewer_steps_in_a_window(together, leases):
    """Windows of 20 steps for who takes 5 ms a step; who takes 25 ms, about a fifth of that. Batches stay as large."""
    data, seconds, each = TensorDataset(torch.arange(4000)), 2.0, (0.005, 0.025)

    def count(worker) -> list[int]:
        model = nn.Linear(1, 1)
        outer, sync = DelayedNesterov(every=2), Async()
        local = LocalSteps(20, torch.optim.SGD(model.parameters(), 0.0), outer, sync=sync, scaled=True)
        opt = LocalOptimizer(worker, model, local)
        batches = loader(worker, data, 2) if leases else ((torch.zeros(2),) for _ in range(4000))
        windows, began, ends = [0], opt.clock, time.monotonic() + seconds
        for (x,) in batches:
            time.sleep(each[worker.rank])
            opt.zero_grad()
            model(x[:, None].float()).sum().backward()
            assert len(x) in (2, 3)
            opt.step()
            windows[-1] += 1
            if opt.clock > began:
                windows.append(0)
                began = opt.clock
                if time.monotonic() > ends:
                    break
        return windows[1:-1]  # the first is a whole one, for nobody knows how fast anybody is

    quick, slow = together(2, count)
    assert isinstance(quick, list) and isinstance(slow, list), (quick, slow)
    assert quick[-1] == 20 and 2 <= slow[-1] <= 8, (quick, slow)


def test_schedulers_and_settings_are_the_inner_optimizers():
    model = mlp()
    inner = adamw(model)
    with connect() as ps:
        opt = ps.optimizer(model, sync=LocalSteps(50, inner))
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
        descend(model, opt, batch(0, 0))
        scheduler.step()
        assert inner.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == pytest.approx(0.01)
        assert opt.state_dict()["state"] and opt.clock == 1
        with pytest.raises(ConfigurationError, match="declared once"):
            opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_each_sample_counts_once_and_windows_are_leased_whole(together):
    """20 batches of 2 samples for 2 workers in windows of 4: five leases."""
    data = TensorDataset(torch.arange(40.0), torch.zeros(40))

    def count(worker):
        model = nn.Linear(1, 1)
        opt = LocalOptimizer(worker, model, LocalSteps(10, torch.optim.SGD(model.parameters(), 0.0)))
        seen: list[int] = []
        for x, _ in loader(worker, data, 2):
            seen += x.int().tolist()
            opt.zero_grad()
            model(x[:, None]).sum().backward()
            opt.step()
        opt.synchronise()
        return seen

    results = together(2, count)
    assert Counter(number for seen in results for number in seen) == Counter(range(40))
    assert sorted(len(seen) for seen in results) == [20, 20]


@pytest.mark.filterwarnings("ignore:.*known to harm")
@pytest.mark.parametrize("sync", [Sync(), Async(), Decoupled()], ids=repr)
@pytest.mark.parametrize(("fragments", "overlap"), [(1, 0), (2, 2)])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_window_ends_with_the_data_epoch(together, sync, fragments, overlap, scaled):
    """Windows of 10 steps, 20 samples; 3 are left over at the end of each epoch."""
    data = TensorDataset(torch.arange(43.0), torch.zeros(43))

    def count(worker):
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        inner = torch.optim.SGD(model.parameters(), 0.0)
        local = LocalSteps(10 * fragments, inner, fragments=fragments, overlap=overlap, sync=sync, scaled=scaled)
        opt, seen = LocalOptimizer(worker, model, local), Counter[int]()
        for _ in range(2):
            for x, _ in loader(worker, data, 2):
                seen.update(x.int().tolist())
                opt.zero_grad()
                model(x[:, None]).sum().backward()
                opt.step()
        opt.synchronise()
        return seen

    first, second = together(2, count)
    assert isinstance(first, Counter) and isinstance(second, Counter), (first, second)
    assert first + second == Counter(dict.fromkeys(range(43), 2))


@pytest.mark.filterwarnings("ignore:.*known to harm")
@pytest.mark.parametrize("sync", [Decoupled(), Decoupled(quorum=2, grace=0.05)], ids=repr)
@pytest.mark.parametrize(("fragments", "overlap"), [(1, 0), (2, 2)])
def test_decoupled_each_sample_of_two_epochs_is_seen_once(together, sync, fragments, overlap):
    data = TensorDataset(torch.arange(96.0), torch.zeros(96))

    def count(worker):
        model = mlp()
        inner = torch.optim.SGD(model.parameters(), 0.0)
        opt = LocalOptimizer(worker, model, LocalSteps(6, inner, fragments=fragments, overlap=overlap, sync=sync))
        batches, seen = loader(worker, data, 2), Counter[int]()
        for _ in range(2):
            for x, _ in batches:
                time.sleep(0.002 * worker.rank)
                seen.update(x.int().tolist())
                opt.zero_grad()
                model(x[:, None].expand(-1, 6)).sum().backward()
                opt.step()
        opt.synchronise()
        return seen

    first, second = together(2, count)
    assert isinstance(first, Counter) and isinstance(second, Counter), (first, second)
    assert first + second == Counter(dict.fromkeys(range(96), 2))


def test_what_is_known_to_harm_is_warned_of_with_its_cure():
    def start(every: int, outer: Rule, rate_rule: bool) -> None:
        model = mlp()
        with connect() as ps:
            ps.optimizer(model, sync=LocalSteps(every, adamw(model), outer, rate_rule))

    def apart(sync: Policy, outer: Rule) -> None:
        model = mlp()
        with connect() as ps:
            ps.optimizer(model, sync=LocalSteps(50, adamw(model), outer, sync=sync))

    for sync in (Async(), Bounded(2), Decoupled()):
        with pytest.warns(UserWarning, match=r"known to harm: .* one by one.*outer=shoal.DelayedNesterov"):
            apart(sync, Nesterov())
    with pytest.warns(UserWarning, match=r"every=2, .*known to harm below about 10 steps"):
        start(2, Nesterov(), False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(2, Nesterov(), True)
        start(10, Nesterov(), False)
        start(2, SGD(lr=1.0), False)
        apart(Async(), DelayedNesterov())
        apart(Async(), SGD(lr=0.2))
        apart(Sync(quorum=0.5), Nesterov())
        apart(Decoupled(quorum=2), Nesterov())


@pytest.mark.parametrize(
    ("every", "outer", "rule"),
    [
        (1, Nesterov(), SGD(lr=1.0)),
        (4, Nesterov(lr=0.7, momentum=0.9), Nesterov(lr=0.819382, momentum=0.541854)),  # log10(4) of the way
        (10, Nesterov(), Nesterov()),
        (50, Nesterov(lr=0.4), Nesterov(lr=0.4)),
        (2, SGD(lr=1.0), SGD(lr=1.0)),
        (2, AdamW(lr=0.1), AdamW(lr=0.1)),
    ],
)
def test_the_rate_rule_goes_from_averaging_to_the_outer_rule(every: int, outer: Rule, rule: Rule):
    found = LocalSteps(every, None, outer).rule
    assert found.name == rule.name and dict(found.settings) == pytest.approx(dict(rule.settings))
    assert LocalSteps(every, None, outer, rate_rule=False).rule is outer


def test_what_cannot_be_is_refused_by_name():
    model, other = mlp(), nn.Linear(1, 1)
    with connect() as ps:
        with pytest.raises(ConfigurationError, match="does not move '2.weight'"):
            ps.optimizer(model, sync=LocalSteps(5, torch.optim.SGD(list(model.parameters())[:2], 0.1)))
        with pytest.raises(ConfigurationError, match="moves 2 parameters that"):
            ps.optimizer(model, sync=LocalSteps(5, torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1)))
        with pytest.raises(ConfigurationError, match="not AdamW"):
            ps.optimizer(model, sync=LocalSteps(5, AdamW(lr=0.1)))
        with pytest.raises(ConfigurationError, match="leave out the rule"):
            ps.optimizer(model, AdamW(lr=0.1), sync=LocalSteps(5, adamw(model)))
        with pytest.raises(ConfigurationError, match="needs a rule"):
            ps.optimizer(model)
        with pytest.raises(ConfigurationError, match="4 tensors make no 5 fragments"):
            ps.optimizer(model, sync=LocalSteps(5, adamw(model), fragments=5))
    with pytest.raises(ConfigurationError, match="every=0"):
        LocalSteps(0, adamw(model))
    for message, options in (
        ("every must be a multiple of fragments", {"fragments": 3}),
        ("at most every / fragments = 5 steps", {"fragments": 2, "overlap": 6}),
        ("overlap must be a whole number, 0 or more", {"overlap": -1}),
        (r"mix must be a number in \[0, 1\)", {"mix": 1.0}),
        ("merge='median'.*known are 'mean', 'radial'", {"merge": "median"}),
        ("delay compensation is for gradients", {"sync": Async(DelayCompensated())}),
    ):
        with pytest.raises(ConfigurationError, match=message):
            LocalSteps(10, adamw(model), **options)
