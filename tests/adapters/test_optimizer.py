"""The optimizer against plain torch: the same loops give the same parameters."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoal.adapters.torch import optimizer
from shoal.errors import ConfigurationError
from shoal.optim import SGD, Adam, AdamW
from shoal.policy import Async, Bounded, Sync


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(count, 16, 6)
    return [(item.to(dtype), item.sum(1, keepdim=True).to(dtype)) for item in x]


def gap(one: nn.Module, other: nn.Module) -> float:
    return max(
        ((p - q).abs().max().item() for p, q in zip(one.parameters(), other.parameters(), strict=True) if p.numel()),
        default=0.0,
    )


def train(model, opt, data, accumulate=1, before_step=lambda model: None, to_none=True):
    for index, (x, y) in enumerate(data):
        (F.mse_loss(model(x), y) / accumulate).backward()
        if (index + 1) % accumulate == 0:
            before_step(model)
            opt.step()
            opt.zero_grad(set_to_none=to_none)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (SGD(lr=0.05, momentum=0.9, nesterov=True), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True)),
        (AdamW(lr=0.01, betas=(0.8, 0.9)), lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.9))),
    ],
)
def test_training_equals_plain_torch(worker, rule, reference, to_none):
    model = mlp()
    twin = copy.deepcopy(model)
    data = batches(20)
    train(model, optimizer(worker, model, rule), data, to_none=to_none)
    train(twin, reference(twin.parameters()), data)
    assert gap(model, twin) < 1e-6


def test_it_is_a_torch_optimizer_that_counts_its_steps(worker):
    model = mlp()
    opt = optimizer(worker, model, SGD(lr=0.1))
    assert isinstance(opt, torch.optim.Optimizer)
    assert (opt.clock, opt.version) == (1, 1)
    train(model, opt, batches(3))
    assert (opt.clock, opt.version) == (4, 4)


def test_the_table_says_what_the_servers_must_know(worker):
    model = mlp(torch.bfloat16)
    optimizer(worker, model, AdamW(lr=0.1, clip_norm=2.0), sync=Bounded(3), reduction="sum")
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in worker.spec.tensors] == [
        ("0.weight", (8, 6), "bfloat16"),
        ("0.bias", (8,), "bfloat16"),
        ("2.weight", (1, 8), "bfloat16"),
        ("2.bias", (1,), "bfloat16"),
    ]
    assert worker.spec.rule == "adamw"
    assert worker.spec.groups == (AdamW(lr=0.1).settings,)
    assert (worker.spec.clip_norm, worker.spec.reduction) == (2.0, "sum")
    assert worker.spec.policy == Bounded(3).spec


# --- what users pass ------------------------------------------------------------------------------


def test_groups_with_settings_of_their_own_equal_torch(worker):
    model = mlp()
    twin = copy.deepcopy(model)

    def split(m):
        return [
            {"params": [p for p in m.parameters() if p.dim() > 1], "betas": (0.5, 0.9)},
            {"params": [p for p in m.parameters() if p.dim() < 2], "weight_decay": 0.0, "lr": 0.1},
        ]

    data = batches(10)
    train(model, optimizer(worker, split(model), AdamW(lr=0.01, weight_decay=0.5)), data)
    train(twin, torch.optim.AdamW(split(twin), 0.01, weight_decay=0.5), data)
    assert gap(model, twin) < 1e-6
    assert [tensor.name for tensor in worker.spec.tensors] == ["group0.0", "group0.1", "group1.0", "group1.1"]


def test_names_come_from_modules_and_pairs_and_stay_unique(worker, make_worker):
    model = mlp()
    optimizer(worker, model.named_parameters(), SGD())
    assert [tensor.name for tensor in worker.spec.tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    other = make_worker()
    groups = [{"params": model[0].named_parameters()}, {"params": model[2].named_parameters()}]
    optimizer(other, groups, SGD())
    names = [tensor.name for tensor in other.spec.tensors]
    assert names == ["group0.weight", "group0.bias", "group1.weight", "group1.bias"]


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize(
    ("params", "says"),
    [
        (lambda m: [], "no parameters"),
        (lambda m: m[0].weight, "not one tensor"),
        (lambda m: [{"params": m.parameters(), "foreach": True}], "'foreach'"),
        (lambda m: [{"params": m.parameters(), "clip_norm": 1.0}], "'clip_norm'"),
        (lambda m: [{"params": m.parameters(), "lr": -1.0}], "lr"),
        (lambda m: [{"params": m[0].parameters()}, {"params": m.parameters()}], "again"),
        (lambda m: m.requires_grad_(False), "nothing to train"),
        (lambda m: m.double(), "parameter '0.weight' is torch.float64.*model.float"),
        (lambda m: m.to(torch.complex64), "parameter '0.weight' is torch.complex64"),
        (lambda m: m.to("meta"), "meta"),
        (lambda m: nn.LazyLinear(3), "forward"),
        (lambda m: [3], "int"),
    ],
)
def test_what_a_table_cannot_hold_is_refused_by_name(worker, params, says):
    with pytest.raises(ConfigurationError, match=says):
        optimizer(worker, params(mlp()), SGD())


def test_unknown_options_are_refused(worker):
    with pytest.raises(ConfigurationError, match="nonfinite='raise'.*refuse, skip, allow"):
        optimizer(worker, mlp(), SGD(), nonfinite="raise")
    with pytest.raises(ConfigurationError, match="reduction='max'"):
        optimizer(worker, mlp(), SGD(), reduction="max")


@pytest.mark.parametrize(
    ("sync", "says"),
    [
        (Sync, r"sync=Sync is a class.*shoal\.Sync\(\)"),
        (Bounded, r"sync=Bounded is a class.*shoal\.Bounded\(staleness=3\)"),
        ("sync", r"sync='sync' is no policy: give shoal\.Sync\(\)"),
        (3, r"sync=3 is no policy"),
    ],
)
def test_what_is_no_policy_is_refused_with_an_example(worker, sync, says):
    with pytest.raises(ConfigurationError, match=says):
        optimizer(worker, mlp(), SGD(), sync=sync)
    assert not hasattr(worker, "spec")  # nothing was declared


def test_what_is_no_rule_is_refused_with_an_example(worker):
    model = mlp()
    for rule, says in (
        (SGD, r"rule=SGD is a class, not a rule: give shoal\.SGD\(lr=\.\.\.\)"),
        (torch.optim.AdamW, r"rule=torch\.optim\.adamw\.AdamW is no rule.*give shoal\.AdamW\(lr=3e-4\)"),
        (torch.optim.SGD(model.parameters(), 0.1), r"rule=torch\.optim\.sgd\.SGD.*give shoal\.SGD\(lr=3e-4\)"),
        ("adamw", r"rule='adamw' is no rule.*shoal\.AdamW\(lr=3e-4\)"),
        (None, r"rule=builtins\.NoneType is no rule"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            optimizer(worker, model, rule)


@pytest.mark.parametrize(
    ("sync", "rule", "harmful"),
    [
        (Async(), AdamW(), "Async() with AdamW is known to harm"),
        (Bounded(2, weight="inverse"), Adam(), "Bounded(staleness=2, weight='inverse') with Adam is known to harm"),
        (Bounded(0), AdamW(), ""),
        (Async(), SGD(), ""),
        (Sync(quorum=0.5), AdamW(), ""),
    ],
    ids=str,
)
def test_a_rule_that_suffers_from_stale_gradients_is_named_with_the_cure(worker, sync, rule, harmful):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer(worker, mlp(), rule, sync=sync)
    assert [str(item.message).split(":")[0] for item in told] == ([harmful] if harmful else [])
    assert not told or "Use shoal.Sync(quorum=0.9)" in str(told[0].message)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": "half"}, r"Async\(weight='half'\): known are 'equal', 'inverse'"),
        ({"age_max": -1}, r"Async\(age_max=-1\).*as in Async\(age_max=16\)"),
        ({"age_max": True}, r"Async\(age_max=True\)"),
    ],
)
def test_what_says_nothing_of_ages_is_refused(options, says):
    with pytest.raises(ConfigurationError, match=says):
        Async(**options)


@pytest.mark.parametrize("staleness", ["a", 1.5, None, True, -1])
def test_a_bound_that_is_no_whole_number_is_refused(staleness):
    with pytest.raises(ConfigurationError, match=r"Bounded\(staleness=.*whole number.*as in Bounded\(staleness=3\)"):
        Bounded(staleness=staleness)


@pytest.mark.parametrize("quorum", ["a", None, 0, 1.1, float("nan")])
def test_a_quorum_that_is_no_share_is_refused(quorum):
    with pytest.raises(ConfigurationError, match=r"Sync\(quorum=.*as in Sync\(quorum=0\.9\)"):
        Sync(quorum=quorum)


# --- kinds of parameters --------------------------------------------------------------------------


def test_tied_weights_are_one_tensor(worker):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.outer.weight = self.inner.weight

        def forward(self, ids):
            return self.outer(self.inner(ids))

    model = Tied()
    twin = copy.deepcopy(model)
    opt = optimizer(worker, model, SGD(lr=0.1, momentum=0.9))
    reference = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    for _ in range(5):
        for m, o in ((model, opt), (twin, reference)):
            o.zero_grad()
            F.cross_entropy(m(torch.arange(5)), torch.arange(5)).backward()
            o.step()
    assert [tensor.name for tensor in worker.spec.tensors] == ["inner.weight"]
    assert model.outer.weight is model.inner.weight
    assert gap(model, twin) < 1e-6
    assert worker.restarts == 0


def test_frozen_parameters_are_left_alone_and_later_changes_of_mind_answered(worker):
    model = mlp()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    opt = optimizer(worker, model, SGD(lr=0.1))
    train(model, opt, batches(3))
    assert [tensor.name for tensor in worker.spec.tensors] == ["2.weight", "2.bias"]
    assert torch.equal(model[0].weight, before)

    model[2].bias.requires_grad_(False)  # freezing what is in the table is fine
    bias = model[2].bias.clone()
    train(model, opt, batches(2))
    assert torch.equal(model[2].bias, bias)

    model[0].requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"'0\.weight' was frozen"):
        opt.step()


def test_unused_parameters_are_not_pushed(worker):
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "idle": nn.Linear(3, 1)})
    opt = optimizer(worker, model, AdamW(lr=0.1))
    idle = copy.deepcopy(model["idle"])
    for _ in range(3):
        opt.zero_grad()
        model["used"](torch.randn(4, 3)).sum().backward()
        opt.step()
    assert all(step["pushed"] == ["used.weight", "used.bias"] for step in worker.steps)
    assert gap(model["idle"], idle) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_have_float32_masters(worker, dtype):
    model = mlp(dtype)
    master = copy.deepcopy(model).float()
    opt = optimizer(worker, model, SGD(lr=1e-4))
    reference = torch.optim.SGD(master.parameters(), 1e-4)
    for x, y in batches(100, dtype):
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        for p, q in zip(model.parameters(), master.parameters(), strict=True):
            q.grad = p.grad.float()
        reference.step()
        opt.step()
    # Steps of 1e-4 would vanish beside weights of this precision; the masters add them up.
    for p, q in zip(model.parameters(), master.parameters(), strict=True):
        assert p.dtype == dtype
        assert torch.equal(p, q.detach().to(dtype))


def test_any_memory_layout_and_shape(worker):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.turned = nn.Parameter(torch.randn(5, 4).t())
            self.scalar = nn.Parameter(torch.tensor(1.5))
            self.empty = nn.Parameter(torch.empty(0, 3))

        def forward(self, x):
            return (self.conv(x).mean((2, 3)) @ self.turned * self.scalar).pow(2).mean() + self.empty.sum()

    model = Odd().to(memory_format=torch.channels_last)
    assert not model.conv.weight.is_contiguous()
    assert not model.turned.is_contiguous()
    twin = copy.deepcopy(model)
    opt, reference = optimizer(worker, model, AdamW(lr=0.01)), torch.optim.AdamW(twin.parameters(), 0.01)
    for _ in range(6):
        x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
        for m, o in ((model, opt), (twin, reference)):
            o.zero_grad()
            m(x).backward()
            o.step()
    assert gap(model, twin) < 1e-6
    assert model.conv.weight.stride() == twin.conv.weight.stride()


def test_sparse_gradients_are_refused_with_the_way_out(worker):
    model = nn.Embedding(4, 2, sparse=True)
    opt = optimizer(worker, model, SGD())
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigurationError, match=r"'weight' is torch\.sparse_coo.*sparse=False"):
        opt.step()


def test_a_model_that_was_moved_or_cast_afterwards_is_refused(worker, make_worker):
    model = mlp()
    opt = optimizer(worker, model, SGD())
    model.half()
    with pytest.raises(ConfigurationError, match=r"'0\.weight' was replaced.*float32 on cpu; now .*float16 on cpu"):
        opt.step()
    model = mlp()
    opt = optimizer(make_worker(), model, SGD())
    model[0].weight.data = torch.zeros(8, 6)
    with pytest.raises(ConfigurationError, match=r"'0\.weight' was replaced"):
        opt.step()


def test_weights_loaded_too_late_are_warned_of(worker):
    model = mlp()
    opt = optimizer(worker, model, SGD())
    train(model, opt, batches(1))
    model.load_state_dict(mlp().state_dict())
    with pytest.warns(UserWarning, match=r"load weights before ps\.optimizer"):
        train(model, opt, batches(1))


def test_fresh_parameters_are_a_change_that_autograd_sees(worker):
    model = mlp()
    opt = optimizer(worker, model, SGD())
    loss = model(torch.randn(2, 6)).pow(2).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- settings, schedulers, checkpoints -------------------------------------------------------------


def test_schedulers_set_the_rate_of_each_group(worker):
    model = mlp()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
    opt = optimizer(worker, groups, SGD(lr=0.1))
    schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns when it thinks step() was not called
        for batch in batches(3):
            train(model, opt, [batch])
            schedule.step()
    assert [step["rates"] for step in worker.steps] == [[0.1, 0.5], [0.05, 0.25], [0.025, 0.125]]


def test_one_cycle_works_without_momentum_and_says_so_with_it(worker, make_worker):
    model = mlp()
    opt = optimizer(worker, model, AdamW(lr=0.1))
    torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10, cycle_momentum=False)
    train(model, opt, batches(1))
    assert worker.steps[0]["rates"] == [pytest.approx(0.004)]
    opt = optimizer(make_worker(), model, AdamW(lr=0.1))
    torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10)
    with pytest.raises(ConfigurationError, match="betas of parameter group 0.*cycle_momentum=False"):
        opt.step()


def test_state_dict_carries_settings_and_no_moments(worker, make_worker, tmp_path):
    model = mlp()
    opt = optimizer(worker, model, AdamW(lr=0.1))
    train(model, opt, batches(1))
    opt.param_groups[0]["lr"] = 0.025
    torch.save(opt.state_dict(), tmp_path / "opt.pt")
    other = make_worker()
    again = optimizer(other, model, AdamW(lr=0.1))
    again.load_state_dict(torch.load(tmp_path / "opt.pt"))
    train(model, again, batches(1))
    assert other.steps[0]["rates"] == [0.025]

    plain = torch.optim.AdamW(model.parameters())
    train(model, plain, batches(1))
    with pytest.raises(ConfigurationError, match="on the servers"):
        again.load_state_dict(plain.state_dict())
    different = opt.state_dict()
    different["param_groups"][0]["weight_decay"] = 0.3
    with pytest.raises(ConfigurationError, match=r"weight_decay of parameter group 0 is 0\.3"):
        again.load_state_dict(different)


def test_groups_cannot_be_added_later(worker):
    opt = optimizer(worker, mlp(), SGD())
    with pytest.raises(ConfigurationError, match="at once"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_closure_is_run_with_gradients_and_its_loss_returned(worker):
    model = mlp()
    opt = optimizer(worker, model, SGD(lr=0.1))
    x, y = batches(1)[0]

    def closure():
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    first = opt.step(closure)
    assert opt.step(closure) < first


def test_the_model_stays_an_ordinary_one(worker, tmp_path):
    model = mlp()
    train(model, optimizer(worker, model, SGD(lr=0.1)), batches(2))
    torch.save(model, tmp_path / "model.pt")
    assert gap(torch.load(tmp_path / "model.pt", weights_only=False), model) == 0
    pushes = len(worker.pushes)
    copy.deepcopy(model)(torch.randn(2, 6)).sum().backward()  # a copy is no part of the job
    assert len(worker.pushes) == pushes


def test_an_optimizer_nobody_uses_any_more_lets_go_of_the_model(worker, make_worker):
    model = mlp()
    train(model, optimizer(worker, model, SGD(lr=0.1)), batches(2))
    gc.collect()
    other = make_worker()
    train(model, optimizer(other, model, SGD(lr=0.1)), batches(2))
    assert len(worker.steps) == 2
    assert not worker.pushes


def test_a_group_may_have_its_gradients_travel_in_a_codec_of_its_own(worker):
    one, two = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
    groups = [{"params": one.parameters(), "push": "sign", "lr": 0.5}, {"params": two.parameters()}]
    optimizer(worker, groups, SGD(lr=0.1), push="int8")
    assert [item.push for item in worker.spec.tensors] == ["sign", "sign", "int8", "int8"]


def test_a_codec_that_nobody_knows_is_refused_with_those_that_are(worker):
    with pytest.raises(ConfigurationError, match=r"push='int7' is no codec; known: .*int8, int4, e3m0, 2bit, sign"):
        optimizer(worker, torch.nn.Linear(2, 1), SGD(lr=0.1), push="int7")
