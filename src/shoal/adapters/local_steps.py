"""How a worker takes steps on its own between two synchronisations, as a value. adapters/torch/local.py does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shoal.errors import ConfigurationError
from shoal.optim import Nesterov, Rule


@dataclass(frozen=True)
class LocalSteps:
    """Workers take `every` steps each with an optimizer of their own, then combine what they came to.

    every: inner steps in a window, H. inner: an optimizer of the framework over the model's parameters, such as
    torch.optim.AdamW(model.parameters(), lr=1e-3); its state stays the worker's. outer: the rule by which servers
    move the global parameters along the mean difference. Nesterov(lr=0.7, momentum=0.9) makes it DiLoCo (Douillard
    et al., arXiv 2311.08105), SGD(lr=1.0) plain averaging, which is local SGD (Stich, arXiv 1805.09767).
    """

    every: int
    inner: Any
    outer: Rule = field(default_factory=Nesterov)

    def __post_init__(self) -> None:
        every: object = self.every  # users write what they like
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ConfigurationError(
                f"LocalSteps(every={every!r}): every must be a whole number of steps, 1 or more, as in "
                f"LocalSteps(every=50, inner=torch.optim.AdamW(model.parameters()))"
            )
