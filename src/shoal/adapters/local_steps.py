"""How a worker takes steps on its own between two synchronisations, as a value. adapters/torch/local.py does it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from shoal.errors import ConfigurationError
from shoal.optim import SGD, Nesterov, Rule

FULL_WINDOW = 10  # steps; in shorter windows outer momentum adds up differences that point the same way


@dataclass(frozen=True)
class LocalSteps:
    """Workers take `every` steps each with an optimizer of their own, then combine what they came to.

    every: inner steps in a window, H. inner: an optimizer of the framework over the model's parameters, such as
    torch.optim.AdamW(model.parameters(), lr=1e-3); its state stays the worker's. outer: the rule by which servers
    move the global parameters along the mean difference. Nesterov(lr=0.7, momentum=0.9) makes it DiLoCo (Douillard
    et al., arXiv 2311.08105), SGD(lr=1.0) plain averaging, which is local SGD (Stich, arXiv 1805.09767).
    rate_rule: in windows below FULL_WINDOW steps, let outer momentum count less; see `rule`.
    """

    every: int
    inner: Any
    outer: Rule = field(default_factory=Nesterov)
    rate_rule: bool = True

    def __post_init__(self) -> None:
        every: object = self.every  # users write what they like
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ConfigurationError(
                f"LocalSteps(every={every!r}): every must be a whole number of steps, 1 or more, as in "
                f"LocalSteps(every=50, inner=torch.optim.AdamW(model.parameters()))"
            )

    @property
    def harmful(self) -> bool:
        """Whether outer momentum is known to harm in windows so short."""
        momentum = isinstance(self.outer, SGD) and self.outer.momentum > 0
        return momentum and self.every < FULL_WINDOW

    @property
    def rule(self) -> Rule:
        """The rule that servers apply: `outer`, or, where that harms and the rate rule is on, something between plain
        averaging at H = 1 and `outer` at H = 10.

        With s = (H - 1) / (FULL_WINDOW - 1): momentum s mu, rate 1 + s (eta - 1). An outer step along differences
        that all point the same way is 1 / (1 - mu) times as long as one of them: what spares a long window, whose
        differences hardly do, throws off a short one. Ours; found by `shoal bench learn`.
        """
        if not (self.harmful and self.rate_rule):
            return self.outer
        assert isinstance(self.outer, SGD)
        share = (self.every - 1) / (FULL_WINDOW - 1)
        momentum, rate = share * self.outer.momentum, 1 + share * (self.outer.lr - 1)
        return replace(self.outer, lr=rate, momentum=momentum, nesterov=self.outer.nesterov and momentum > 0)
