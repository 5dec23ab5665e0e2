"""The check of the exchange's results can fail, and its gradients reach both sides without a copy."""

from __future__ import annotations

import pytest
import torch

from shoal.bench.orders import Answer
from shoal.bench.rules import RULES
from shoal.bench.shapes import gpt_shapes
from shoal.bench.verdict import TOLERANCE, WrongResultError, verify
from shoal.bench.workload import SETS, difference, digest, gradients_of, model_of, reference, torch_optimizer

PARAMS = 20_000
STEPS = 3


def trained(name: str, factors: tuple[float, float]) -> list[torch.Tensor]:
    """Two workers' gradients, combined with these factors, through torch's optimizer."""
    model = model_of(PARAMS, 0)
    optimizer = torch_optimizer(name, model.parameters())
    shapes = gpt_shapes(PARAMS)
    for step in range(STEPS):
        pairs = zip(gradients_of(shapes, 0, step % SETS), gradients_of(shapes, 1, step % SETS), strict=True)
        for weight, (mine, other) in zip(model.weights, pairs, strict=True):
            weight.grad = factors[0] * mine + factors[1] * other
        optimizer.step()
    return [weight.detach() for weight in model.weights]


@pytest.mark.parametrize("name", RULES)
def test_the_mean_gradient_passes(name: str) -> None:
    assert difference(trained(name, (0.5, 0.5)), reference(PARAMS, 2, name, STEPS)) <= TOLERANCE


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("factors", [(1.0, 1.0), (1.0, 0.0), (0.4, 0.6), (0.0, 0.0)])
def test_any_other_combination_is_caught(name: str, factors: tuple[float, float]) -> None:
    found = difference(trained(name, factors), reference(PARAMS, 2, name, STEPS))
    with pytest.raises(WrongResultError, match="off that of torch"):
        verify("shoal", [Answer(digests=("a",), difference=found), Answer(digests=("a",))])


def test_a_missing_step_is_caught() -> None:
    assert difference(trained("adamw", (0.5, 0.5)), reference(PARAMS, 2, "adamw", STEPS - 1)) > TOLERANCE


def test_nan_is_caught() -> None:
    weights = reference(PARAMS, 1, "sgd", 1)
    broken = [weight.clone() for weight in weights]
    broken[3].view(-1)[0] = float("nan")
    with pytest.raises(WrongResultError):
        verify("shoal", [Answer(digests=("a",), difference=difference(broken, weights))])


def test_workers_that_differ_by_one_bit_are_caught() -> None:
    weights = reference(PARAMS, 1, "sgd", 1)
    other = [weight.clone() for weight in weights]
    other[-1].view(torch.int32).view(-1)[-1] ^= 1
    answers = [Answer(digests=(digest(weights),), difference=0.0), Answer(digests=(digest(other),))]
    with pytest.raises(WrongResultError, match="do not hold the same"):
        verify("ddp", answers)
    assert verify("ddp", [answers[0], Answer(digests=(digest(weights),))]) == 0.0


def test_backward_hands_out_the_gradients_where_they_lie() -> None:
    model = model_of(PARAMS, 1)
    for which in range(SETS):
        model(which).backward()
        for weight, expected in zip(model.weights, gradients_of(gpt_shapes(PARAMS), 1, which), strict=True):
            assert weight.grad is not None
            assert torch.equal(weight.grad, expected)
        given = model._gradients[which]
        assert [weight.grad.data_ptr() for weight in model.weights] == [gradient.data_ptr() for gradient in given]
        model.zero_grad(set_to_none=True)
