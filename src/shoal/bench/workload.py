"""What both sides of the exchange do in each step, and what must come out of it.

A model whose backward costs nothing: it hands out gradients that were made beforehand, in the order
and through the hooks of a real one. They are views of those tensors, so nothing is copied before
Shoal or the peer sees them. Gradients differ by worker and alternate between two sets of different
size, so that parameters move by what the rule makes of their mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.adapters.torch.groups import settings_of
from shoal.bench.rules import RULES
from shoal.bench.shapes import Shapes, gpt_shapes

SETS = 2
SCALES = (0.01, 0.003)  # standard deviation of the gradients of each set
WEIGHTS_SCALE = 0.02


TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class Preset(nn.Module):
    """A model of these shapes whose backward yields `gradients[which]`; forward returns a scalar of zero."""

    def __init__(self, shapes: Shapes, gradients: Sequence[Sequence[Tensor]]) -> None:
        super().__init__()
        self._gradients = gradients
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(
            nn.Parameter(WEIGHTS_SCALE * torch.randn(shape, generator=generator)) for _, shape in shapes
        )

    def forward(self, which: int) -> Tensor:
        """which: the set of gradients, 0..SETS-1."""
        return handed_out(self.weights, self._gradients[which])


def handed_out(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> Tensor:
    """A scalar of zero whose backward yields these gradients, through the hooks of the parameters."""
    parts = [_Handout.apply(*pair) for pair in zip(parameters, gradients, strict=True)]  # type: ignore[no-untyped-call]
    return torch.stack(parts).sum()


class _Handout(torch.autograd.Function):
    """Zero, whose derivative is a gradient that exists already."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.detach(), None  # a view of its own, which autograd takes over without a copy


def torch_optimizer(name: str, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """torch's own optimizer, fused, with the settings of RULES[name]."""
    return TORCH[name](weights, fused=True, **settings_of(RULES[name]))


def model_of(params: int, rank: int) -> Preset:
    """The model of worker `rank`; parameters are the same on all, gradients are not."""
    shapes = gpt_shapes(params)
    return Preset(shapes, [gradients_of(shapes, rank, which) for which in range(SETS)])


def gradients_of(shapes: Shapes, rank: int, which: int) -> list[Tensor]:
    """Set `which` of worker `rank`."""
    generator = torch.Generator().manual_seed(1 + SETS * rank + which)
    return [SCALES[which] * torch.randn(shape, generator=generator) for _, shape in shapes]


def reference(params: int, workers: int, optimizer: str, steps: int) -> list[Tensor]:
    """The parameters after `steps` steps of one process: torch's own optimizer on the mean gradient."""
    shapes = gpt_shapes(params)
    means: list[list[Tensor]] = []
    for which in range(SETS):
        mean = gradients_of(shapes, 0, which)
        for rank in range(1, workers):
            torch._foreach_add_(mean, gradients_of(shapes, rank, which))
        torch._foreach_div_(mean, float(workers))
        means.append(mean)
    weights = list(Preset(shapes, means).weights)
    chosen = torch_optimizer(optimizer, weights)
    for step in range(steps):
        for weight, gradient in zip(weights, means[step % SETS], strict=True):
            weight.grad = gradient
        chosen.step()
    return [weight.detach() for weight in weights]


def difference(weights: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest absolute difference of any parameter; infinity if any is NaN."""
    pairs = zip(weights, expected, strict=True)
    worst = float(torch.stack([(weight.detach() - other).abs().max() for weight, other in pairs]).max())
    return float("inf") if math.isnan(worst) else worst


def digest(weights: Iterable[Tensor]) -> str:
    """Tells two sets of parameters apart that differ in any bit."""
    found = hashlib.sha256()
    for weight in weights:
        found.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
