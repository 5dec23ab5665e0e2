"""When gradients leave, and that whatever leaves too early is taken back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoal.adapters.torch import optimizer
from shoal.errors import NonFiniteGradientError
from shoal.optim import SGD


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def gap(one: nn.Module, other: nn.Module) -> float:
    return max((p - q).abs().max().item() for p, q in zip(one.parameters(), other.parameters(), strict=True))


class Pair:
    """A model under Shoal and its twin under plain torch, which must stay equal."""

    def __init__(self, worker, **options):
        self.worker = worker
        self.model = mlp()
        self.twin = copy.deepcopy(self.model)
        self.opt = optimizer(worker, self.model, SGD(lr=0.1, momentum=0.9), **options)
        self.reference = torch.optim.SGD(self.twin.parameters(), 0.1, momentum=0.9)

    def step(self, backwards=1, change=lambda model: None):
        for _ in range(backwards):
            x = torch.randn(4, 6)
            for model in (self.model, self.twin):
                (F.mse_loss(model(x), x.sum(1, keepdim=True)) / backwards).backward()
        self.early = len(self.worker.pushes)
        for model, opt in ((self.model, self.opt), (self.twin, self.reference)):
            change(model)
            opt.step()
            opt.zero_grad()
        assert gap(self.model, self.twin) < 1e-6


def test_blocks_leave_during_backward_last_layer_first(worker):
    pair = Pair(worker)
    pair.step()
    assert pair.early == 0  # how often backward runs is not known yet
    loss = pair.model(torch.randn(4, 6)).sum()
    assert worker.pushes == []
    loss.backward()
    assert sorted(worker.pushes) == [0, 1, 2, 3]
    assert set(worker.pushes[:2]) == {2, 3}
    assert worker.restarts == 0


def test_a_gradient_is_sent_from_where_it_lies(worker):
    pair = Pair(worker)
    pair.step()
    pair.model(torch.randn(4, 6)).sum().backward()
    for index, parameter in enumerate(pair.model.parameters()):
        assert worker.views[index].__array_interface__["data"][0] == parameter.grad.data_ptr()


@pytest.mark.parametrize("backwards", [1, 2, 4])
def test_accumulation_is_learnt_without_being_told(worker, backwards):
    pair = Pair(worker)
    for _ in range(4):
        pair.step(backwards)
    assert pair.early == 4  # after the last backward all four had left, each once
    assert worker.restarts == 0


def test_a_changing_number_of_backwards_is_followed(worker):
    pair = Pair(worker)
    for backwards in (1, 1, 3, 3, 2, 4, 1, 1):
        pair.step(backwards)
    assert worker.restarts == 2  # when more backwards came than before: 1 to 3 and 2 to 4
    assert pair.early == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.01),
        lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01),
        lambda model: [p.grad.add_(1.0) for p in model.parameters()],
        lambda model: [setattr(p, "grad", p.grad * 0.5) for p in model.parameters()],
        lambda model: [p.grad.data.clamp_(-0.01, 0.01) for p in model.parameters()],
    ],
    ids=["clip_norm", "clip_value", "add", "replace", "data"],
)
def test_gradients_changed_before_step_count_as_changed(worker, change):
    pair = Pair(worker)
    for _ in range(4):
        pair.step(change=change)
    assert worker.restarts == 0  # seen in the first step, and held back from then on
    assert pair.early == 0


def test_a_change_that_comes_later_is_seen_and_costs_one_restart(worker):
    pair = Pair(worker)
    pair.step()
    pair.step()
    for _ in range(3):
        pair.step(change=lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.01))
    assert worker.restarts == 1
    assert pair.early == 0


def test_one_changed_parameter_does_not_hold_back_the_others(worker):
    pair = Pair(worker)
    for _ in range(3):
        pair.step(change=lambda model: model[0].weight.grad.mul_(0.5))
    assert pair.early == 3


def test_gradients_cleared_before_step_are_taken_back(worker):
    pair = Pair(worker)
    pair.step()
    pair.step(change=lambda model: model[0].zero_grad())
    assert worker.restarts == 1
    assert worker.steps[-1]["pushed"] == ["2.weight", "2.bias"]


def test_a_backward_that_was_given_up_does_not_count(worker):
    pair = Pair(worker)
    pair.step()
    pair.model(torch.randn(4, 6)).sum().backward()  # this batch is thrown away
    pair.opt.zero_grad()
    pair.step()
    assert worker.restarts == 1


def test_step_without_backward_contributes_nothing_and_says_so(worker):
    pair = Pair(worker)
    with pytest.warns(UserWarning, match="found no gradient"):
        pair.opt.step()
    assert worker.steps == [{"rates": [0.1], "multiplier": 1.0, "void": True, "pushed": []}]
    assert worker.clock == 2
    pair.step()


def test_gradients_kept_without_zero_grad_are_used_again(worker):
    pair = Pair(worker)
    pair.step()
    x = torch.randn(4, 6)
    for model, opt in ((pair.model, pair.opt), (pair.twin, pair.reference)):
        model(x).sum().backward()
        opt.step()
        opt.step()
    assert gap(pair.model, pair.twin) < 1e-6


# --- not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [0, 2], ids=["at step", "in backward"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_is_refused_by_name(worker, warm, value):
    pair = Pair(worker)
    for _ in range(warm):
        pair.step()
    pair.model[2].weight.register_hook(lambda gradient: gradient + torch.tensor([0, 0, value, 0, 0, 0, 0, 0]))
    pair.model(torch.randn(4, 6)).sum().backward()
    with pytest.raises(NonFiniteGradientError) as caught:
        pair.opt.step()
    for fact in (
        "worker 0",
        f"clock {warm + 1}",
        "'2.weight'",
        "learning rate (0.1)",
        "GradScaler",
        'nonfinite="skip"',
    ):
        assert fact in str(caught.value)
    assert len(worker.steps) == warm  # nothing was made ready
    assert not worker.pushed


def test_training_can_go_on_after_a_refusal(worker):
    pair = Pair(worker)
    pair.step()
    pair.model(torch.full((4, 6), float("nan"))).sum().backward()
    with pytest.raises(NonFiniteGradientError, match=r"'0\.weight' \(and 2 more\)"):
        pair.opt.step()
    pair.opt.zero_grad()
    pair.step()
    pair.step()
    assert pair.early == 4


def test_skip_leaves_the_contribution_out(worker):
    pair = Pair(worker, nonfinite="skip")
    pair.step()
    pair.model(torch.full((4, 6), float("nan"))).sum().backward()
    pair.opt.step()
    pair.opt.zero_grad()
    assert worker.steps[-1]["void"] is True
    pair.step()


def test_allow_lets_it_pass(worker):
    pair = Pair(worker, nonfinite="allow")
    pair.model(torch.full((4, 6), float("nan"))).sum().backward()
    pair.opt.step()
    assert worker.steps[-1]["void"] is False
    assert pair.model[0].weight.isnan().all()


def test_large_finite_gradients_are_finite(worker):
    parameter = nn.Parameter(torch.zeros(1000))
    opt = optimizer(worker, [parameter], SGD(lr=1e-38))
    (parameter * 3e38).sum().backward()  # their sum overflows
    opt.step()
    assert worker.steps[0]["pushed"] == ["group0.0"]


# --- GradScaler -----------------------------------------------------------------------------------


def scaled_step(model, opt, scaler, x, unscale=False, clip=False):
    opt.zero_grad()
    scaler.scale(F.mse_loss(model(x), x.sum(1, keepdim=True))).backward()
    if unscale:
        scaler.unscale_(opt)
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize(("unscale", "clip"), [(False, False), (True, False), (True, True)])
def test_grad_scaler_equals_torch(worker, unscale, clip):
    pair = Pair(worker)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(5):
        x = torch.randn(4, 6)
        scaled_step(pair.model, pair.opt, scaler, x, unscale, clip)
        scaled_step(pair.twin, pair.reference, torch.amp.GradScaler("cpu", init_scale=2.0**10), x, unscale, clip)
        assert gap(pair.model, pair.twin) < 1e-6
    assert all(step["multiplier"] == (1.0 if unscale else 2.0**-10) for step in worker.steps)
    assert worker.restarts == 0


def test_grad_scaler_may_begin_to_unscale_at_any_step(worker):
    pair = Pair(worker)
    ours, theirs = (torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2))
    for unscale in (False, False, True, False, True):
        x = torch.randn(4, 6)
        scaled_step(pair.model, pair.opt, ours, x, unscale)
        scaled_step(pair.twin, pair.reference, theirs, x, unscale)
        assert gap(pair.model, pair.twin) < 1e-6
    assert worker.restarts == 1


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("warm", [0, 2])
def test_overflow_under_grad_scaler_is_void_and_lowers_the_scale(worker, warm, unscale):
    pair = Pair(worker)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(warm):
        scaled_step(pair.model, pair.opt, scaler, torch.randn(4, 6), unscale)
    before = copy.deepcopy(pair.model)
    scaled_step(pair.model, pair.opt, scaler, torch.full((4, 6), float("inf")), unscale)
    assert worker.steps[-1]["void"] is True
    assert worker.steps[-1]["pushed"] == []
    assert gap(pair.model, before) == 0
    assert scaler.get_scale() == 2.0**9
    scaled_step(pair.model, pair.opt, scaler, torch.randn(4, 6), unscale)
    assert worker.steps[-1]["void"] is False


def test_float16_model_under_grad_scaler_and_autocast(worker):
    model = mlp()
    opt = optimizer(worker, model, SGD(lr=0.05))
    scaler = torch.amp.GradScaler("cpu")
    x = torch.randn(64, 6)
    y = x.sum(1, keepdim=True)
    first = F.mse_loss(model(x), y).item()
    for _ in range(40):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.mse_loss(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    assert F.mse_loss(model(x), y).item() < first / 2

    pure = mlp().half()
    opt = optimizer(type(worker)(), pure, SGD(lr=0.05))
    for _ in range(3):
        opt.zero_grad()
        scaler.scale(F.mse_loss(pure(x.half()).float(), y)).backward()
        scaler.step(opt)
        scaler.update()
    assert all(p.isfinite().all() for p in pure.parameters())
