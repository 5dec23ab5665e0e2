"""Local steps: what workers come to is DiLoCo as its paper has it, whoever holds the global parameters."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from shoal.adapters.local_steps import LocalSteps
from shoal.adapters.torch import LocalOptimizer, loader
from shoal.client import connect
from shoal.errors import ConfigurationError
from shoal.optim import SGD, AdamW, Nesterov, Rule

from .test_in_process import gap, mlp, together

__all__ = ["together"]  # a fixture

EVERY, WINDOWS = 4, 5


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


@pytest.mark.filterwarnings("ignore:.*known to harm")
def test_differences_travel_in_a_codec(together):
    torch.manual_seed(0)
    model = mlp()
    whole, packed = (
        together(2, lambda worker, push=push: train(worker, copy.deepcopy(model), Nesterov(), 40, push))[0]
        for push in ("", "e3m0")
    )
    assert 0 < gap(whole, packed) < 0.2 * gap(whole, model)


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


def test_short_windows_with_momentum_are_warned_of_unless_the_rate_rule_is_on():
    def start(every: int, outer: Rule, rate_rule: bool) -> None:
        model = mlp()
        with connect() as ps:
            ps.optimizer(model, sync=LocalSteps(every, adamw(model), outer, rate_rule))

    with pytest.warns(UserWarning, match=r"every=2, .*known to harm below about 10 steps"):
        start(2, Nesterov(), False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(2, Nesterov(), True)
        start(10, Nesterov(), False)
        start(2, SGD(lr=1.0), False)


@pytest.mark.parametrize(
    ("every", "outer", "rule"),
    [
        (1, Nesterov(), SGD(lr=1.0)),
        (4, Nesterov(lr=0.7, momentum=0.9), Nesterov(lr=0.9, momentum=0.3)),
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
    with pytest.raises(ConfigurationError, match="every=0"):
        LocalSteps(0, adamw(model))
