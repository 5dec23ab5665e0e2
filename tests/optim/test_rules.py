"""Every rule follows its reference to 1e-6 over 100 steps: torch's own, or the paper's formula in torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from shoal.codec.codec import codec_for
from shoal.errors import ConfigurationError
from shoal.optim import LAMB, SGD, Adagrad, Adam, AdamW, DelayedNesterov, Lion, RMSprop, Rule
from shoal.optim.passes import LANES, fused
from shoal.optim.registry import RULES, rule_for

STEPS = 100
SHAPES = ((7, 5), (33,), ())
FLOAT32, ONE, SCRATCH = codec_for("float32"), np.float32(1), np.zeros(LANES, np.float32)


def rate_at(rule: Rule, step: int) -> float:
    """A schedule that changes at every step, as a warm-up and a cosine would."""
    return rule.lr * min(1, step / 10) * (0.55 + 0.45 * math.cos(step / 15))


def gradients(seed: int = 5) -> Iterator[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        yield [torch.randn(shape, generator=generator) for shape in SHAPES]


def initial() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(rules: list[Rule]) -> list[np.ndarray]:
    """100 steps of the server's rules, one per tensor, LAMB's ratio included."""
    parameters = [tensor.numpy().reshape(-1).copy() for tensor in initial()]
    states = [[np.zeros_like(p) for _ in rule.states] for p, rule in zip(parameters, rules, strict=True)]
    for step, grads in enumerate(gradients(), start=1):
        for p, gradient, state, rule in zip(parameters, grads, states, rules, strict=True):
            given, rate, passes = [(gradient.numpy().reshape(-1), ONE)], rate_at(rule, step), fused(rule, FLOAT32)
            if isinstance(rule, LAMB):
                weights, updates = passes.trust(p, state, rule.constants(step, rate), given, ONE, SCRATCH)
                rate *= math.sqrt(weights) / math.sqrt(updates)
            passes.update(p, state, rule.constants(step, rate), given, ONE, SCRATCH)
    return parameters


def train_torch(rules: list[Rule], make: Callable[..., torch.optim.Optimizer]) -> list[np.ndarray]:
    parameters = [tensor.requires_grad_() for tensor in initial()]
    groups = []
    for parameter, rule in zip(parameters, rules, strict=True):
        options = {item.name: getattr(rule, item.name) for item in dataclasses.fields(rule) if item.name != "clip_norm"}
        groups.append({"params": [parameter], **options})
    start = {"initial_accumulator_value": rules[0].initial_accumulator_value} if isinstance(rules[0], Adagrad) else {}
    optimizer = make(groups, foreach=False, **start)  # torch reads this one setting from the constructor only
    for step, grads in enumerate(gradients(), start=1):
        for group, rule in zip(optimizer.param_groups, rules, strict=True):
            group["lr"] = rate_at(rule, step)
        for parameter, gradient in zip(parameters, grads, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().numpy().reshape(-1) for parameter in parameters]


def assert_close(ours: list[np.ndarray], reference: list[np.ndarray]) -> None:
    for before, one, other in zip(initial(), ours, reference, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
        assert np.abs(one - before.numpy().reshape(-1)).max() > 1e-3, "the rule must have moved something"


IN_TORCH = {SGD: torch.optim.SGD, Adagrad: torch.optim.Adagrad, RMSprop: torch.optim.RMSprop,
            Adam: torch.optim.Adam, AdamW: torch.optim.AdamW}  # fmt: skip


@pytest.mark.parametrize(
    "rule",
    [
        SGD(lr=0.01),
        SGD(lr=0.01, weight_decay=0.1),
        SGD(lr=0.01, momentum=0.9, weight_decay=0.01),
        SGD(lr=0.01, momentum=0.9, dampening=0.3),
        SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
        Adagrad(lr=0.05),
        Adagrad(lr=0.05, lr_decay=0.01, weight_decay=0.1, initial_accumulator_value=0.2, eps=1e-6),
        RMSprop(lr=0.003),
        RMSprop(lr=0.003, alpha=0.9, weight_decay=0.1, eps=1e-6),
        RMSprop(lr=0.003, momentum=0.9),
        RMSprop(lr=0.003, centered=True, weight_decay=0.01),
        RMSprop(lr=0.0003, momentum=0.8, centered=True),
        Adam(),
        Adam(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        AdamW(),
        AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
    ],
    ids=repr,
)
def test_rule_follows_torch(rule: Rule) -> None:
    rules = [rule] * len(SHAPES)
    assert_close(train(rules), train_torch(rules, IN_TORCH[type(rule)]))


def test_groups_differ() -> None:
    rules: list[Rule] = [AdamW(lr=0.01, weight_decay=0.3), AdamW(weight_decay=0.0), AdamW(lr=0.1, betas=(0.5, 0.9))]
    assert_close(train(rules), train_torch(rules, torch.optim.AdamW))


@pytest.mark.parametrize("rule", [LAMB(lr=0.01), LAMB(lr=0.003, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1)])
def test_lamb_follows_its_paper(rule: LAMB) -> None:
    parameters = [tensor.double() for tensor in initial()]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    beta1, beta2 = rule.betas
    for step, grads in enumerate(gradients(), start=1):
        for p, g, m, v in zip(parameters, grads, first, second, strict=True):
            m.copy_(beta1 * m + (1 - beta1) * g)
            v.copy_(beta2 * v + (1 - beta2) * g.double() ** 2)
            r = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + rule.eps)
            u = r + rule.weight_decay * p
            p -= rate_at(rule, step) * p.norm() / u.norm() * u
    assert_close(train([rule] * len(SHAPES)), [p.numpy().reshape(-1) for p in parameters])


@pytest.mark.parametrize("rule", [Lion(lr=0.001), Lion(lr=0.003, betas=(0.95, 0.98), weight_decay=0.5)])
def test_lion_follows_its_paper(rule: Lion) -> None:
    parameters = initial()
    first = [torch.zeros_like(p) for p in parameters]
    beta1, beta2 = rule.betas
    for step, grads in enumerate(gradients(), start=1):
        for p, g, m in zip(parameters, grads, first, strict=True):
            update = (beta1 * m + (1 - beta1) * g).sign()
            p -= rate_at(rule, step) * (update + rule.weight_decay * p)
            m.copy_(beta2 * m + (1 - beta2) * g)
    assert_close(train([rule] * len(SHAPES)), [p.numpy().reshape(-1) for p in parameters])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("every", [1, 4])
def test_delayed_nesterov_follows_its_paper(every: int, share: float) -> None:
    """Algorithm 3: t counts from 0, Delta the accumulator, c the share."""
    rule = DelayedNesterov(lr=0.01, momentum=0.8, every=every, share=share)
    parameters = [tensor.double() for tensor in initial()]
    momentum = [torch.zeros_like(p) for p in parameters]
    delta = [torch.zeros_like(p) for p in parameters]
    for t, grads in enumerate(gradients()):
        for p, g, m, d in zip(parameters, grads, momentum, delta, strict=True):
            d += g
            share_now = share
            if (t + 1) % every == 0:
                m.copy_(0.8 * m + d / every)
                d.zero_()
                share_now = 1 - every * share + share
            p -= rate_at(rule, t + 1) * (share_now * 0.8 * m + g / every)
    assert_close(train([rule] * len(SHAPES)), [p.numpy().reshape(-1) for p in parameters])


def test_delayed_nesterov_of_one_update_is_nesterov() -> None:
    rules: list[Rule] = [DelayedNesterov(lr=0.01, momentum=0.9, every=1)] * len(SHAPES)
    assert_close(train(rules), train([SGD(lr=0.01, momentum=0.9, nesterov=True)] * len(SHAPES)))


@pytest.mark.parametrize("name", RULES)
def test_first_step_by_hand(name: str) -> None:
    rule = RULES[name]()
    p, g = np.float32([0.1]), np.float32([0.3])
    states = [np.zeros(1, np.float32) for _ in rule.states]
    fused(rule, FLOAT32).update(p, states, rule.constants(1, 0.7), [(g, ONE)], ONE, SCRATCH)
    exact = 0.1 - {"sgd": 0.21, "adagrad": 0.7, "rmsprop": 7.0, "adam": 0.7, "adamw": 0.7007,
                   "lamb": 0.7 / (1 + 1e-6 / 0.3) + 0.0007, "lion": 0.7,
                   "delayed-nesterov": 0.7 * 0.3 / 4}[name]  # fmt: skip
    assert p[0] == pytest.approx(exact, rel=1e-6)


def test_settings_make_the_round_trip() -> None:
    for rule in (
        SGD(lr=0.5, momentum=0.9, nesterov=True),
        RMSprop(centered=True),
        AdamW(lr=3e-4, betas=(0.8, 0.9), weight_decay=0),
        *(rule() for rule in RULES.values()),
    ):
        assert rule_for(rule.name, rule.settings) == rule
        assert all(type(value) is float for _, value in rule.settings)
    assert AdamW(clip_norm=1.0).settings == (
        ("lr", 1e-3), ("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8), ("weight_decay", 0.01),
    )  # fmt: skip
    assert SGD(momentum=0.9).states == ("momentum_buffer",)
    assert SGD().states == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(lr=-1), r"AdamW\(lr=-1\): lr must be a number in \[0, inf\)"),
        (lambda: AdamW(lr=math.nan), r"lr must be a number in"),
        (lambda: AdamW(lr="fast"), r"AdamW\(lr='fast'\): lr must be"),
        (lambda: AdamW(lr=None), r"AdamW\(lr=None\): lr must be"),
        (lambda: Adam(betas=(0.9, 1.0)), r"Adam\(beta2=1.0\): beta2 must be a number in \[0, 1\)"),
        (lambda: Adam(betas=0.9), r"betas must be two numbers in \[0, 1\)"),
        (lambda: Lion(weight_decay=-0.1), r"Lion\(weight_decay=-0.1\)"),
        (lambda: RMSprop(alpha=1.1), r"alpha must be a number in \[0, 1\]"),
        (lambda: SGD(clip_norm=0), r"clip_norm must be a number in \(0, inf\)"),
        (lambda: DelayedNesterov(every=2.5), r"every must be a whole number of updates"),
        (lambda: DelayedNesterov(every=0), r"every must be a number in \[1, inf\)"),
        (lambda: DelayedNesterov(every=4, share=0.3), r"share at most one part in so many"),
        (lambda: SGD(nesterov=True), r"needs momentum above 0 and dampening 0; here momentum=0.0"),
        (lambda: rule_for("adamax", ()), r"unknown rule 'adamax'; known: sgd, adagrad"),
        (lambda: rule_for("sgd", (("beta1", 0.9),)), r"SGD has no setting 'beta1'; it has lr, momentum"),
    ],
)
def test_bad_settings_name_the_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
