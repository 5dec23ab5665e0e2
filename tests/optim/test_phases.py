"""Whole-model facts: exact sums in any order, torch's clipping, LAMB's ratios."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from shoal.codec.codec import codec_for
from shoal.optim import SGD, phases
from shoal.optim.passes import LANES, fused
from shoal.vocabulary import PolicySpec, TableSpec, TensorSpec


def table(rule: str, clip_norm: float | None = None, tensors: int = 2) -> TableSpec:
    specs = tuple(TensorSpec(f"t{index}", (4,), "float32", 0) for index in range(tensors))
    return TableSpec(specs, rule, ((("lr", 0.1),),), PolicySpec("sync"), clip_norm)


def sum_of_squares(gradient: np.ndarray) -> float:
    scratch = np.zeros(LANES, np.float32)
    return fused(SGD(), codec_for("float32")).squares([(gradient, np.float32(1))], scratch)


def test_phases_of_a_table() -> None:
    assert phases.phases(table("adamw")) == ()
    assert phases.phases(table("adamw", 1.0)) == ("gradient",)
    assert phases.phases(table("lamb")) == ("trust",)
    assert phases.phases(table("lamb", 1.0)) == ("gradient", "trust")


@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e6])
def test_clip_factor_is_torchs(clip_norm: float) -> None:
    generator = torch.Generator().manual_seed(1)
    parameter = torch.nn.Parameter(torch.zeros(100_003))
    gradient = torch.randn(100_003, generator=generator)
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], clip_norm)
    squares = sum_of_squares(gradient.numpy())
    (factor,) = phases.reduce(table("sgd", clip_norm), "gradient", {0: (squares,)})
    torch.testing.assert_close(gradient * factor, parameter.grad, rtol=1e-6, atol=0)  # torch sums in float32
    assert squares == pytest.approx(math.fsum(gradient.double().numpy() ** 2), rel=1e-12)


def test_reduction_does_not_depend_on_order() -> None:
    rng = random.Random(3)
    partials = {block: (rng.uniform(0, 10.0 ** rng.randint(-20, 20)),) for block in range(1000)}
    results = set()
    for _ in range(20):
        order = rng.sample(sorted(partials), len(partials))
        results.add(phases.reduce(table("sgd", 1.0), "gradient", {block: partials[block] for block in order}))
    assert len(results) == 1


def test_no_gradient_and_nan_gradients() -> None:
    assert phases.reduce(table("sgd", 1.0), "gradient", {}) == (1.0,)
    assert math.isnan(phases.reduce(table("sgd", 1.0), "gradient", {0: (math.nan,)})[0])
    assert phases.reduce(table("sgd", 1.0), "gradient", {0: (math.inf,)}) == (0.0,)


def test_trust_ratio_per_tensor() -> None:
    partials = {0: (0.0, 9.0, 3.0), 1: (0.0, 7.0, 1.0), 2: (1.0, 0.0, 5.0), 3: (2.0, 5.0, 0.0)}
    assert phases.reduce(table("lamb", tensors=5), "trust", partials) == (2.0, 1.0, 1.0, 1.0, 1.0)


def test_sum_of_squares_keeps_float64() -> None:
    assert sum_of_squares(np.full(1_000_003, 0.1, np.float32)) == pytest.approx(
        1_000_003 * float(np.float32(0.1)) ** 2, rel=1e-12
    )
