"""How a worker takes steps on its own between two synchronisations, as a value. adapters/torch/local.py does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from shoal.errors import ConfigurationError
from shoal.optim import SGD, Nesterov, Rule
from shoal.policy import Decoupled, Policy, Sync, checked

Merge = Literal["mean", "radial"]

FULL_WINDOW = 10  # steps; in shorter windows outer momentum adds up differences that point the same way


@dataclass(frozen=True)
class LocalSteps:
    """Workers take `every` steps each with an optimizer of their own, then combine what they came to.

    every: inner steps in a window, H. inner: an optimizer of the framework over the model's parameters, such as
    torch.optim.AdamW(model.parameters(), lr=1e-3); its state stays the worker's. outer: the rule by which servers
    move the global parameters along the mean difference. Nesterov(lr=0.7, momentum=0.9) makes it DiLoCo (Douillard
    et al., arXiv 2311.08105), SGD(lr=1.0) plain averaging, which is local SGD (Stich, arXiv 1805.09767).
    rate_rule: in windows below FULL_WINDOW steps, let outer momentum count less; see `rule`.

    The rest is Streaming DiLoCo's (Douillard et al., arXiv 2501.18512, algorithm 2). fragments: P, the parts that the
    parameters are combined in, one after the other, one each H / P steps. overlap: tau, how many steps a worker goes
    on while a fragment is combined, at most H / P. mix: alpha, the worker's share when it takes what came:
    alpha * its own + (1 - alpha) * the global ones.

    sync: how the workers' contributions come together: Sync(), all of a round at once, or one by one as they come,
    Async() or Bounded(staleness=...), where no worker waits for a slower one (Liu et al., arXiv 2401.09135). Then
    outer should be DelayedNesterov(every=number of workers). scaled: a slower worker takes fewer steps in a window,
    H_w = floor(H v_w / v_max) (DyLU, the same paper, section 5), where v are samples per second as the coordinator
    sees them; so windows take all about as long.

    sync=Decoupled(quorum=..., grace=...) is after Decoupled DiLoCo (arXiv 2604.21428): no step waits for anything. A
    worker takes what came when it is there, at the end of the first step from `overlap` on, and the steps that it took
    meanwhile go on from there; until then its window goes on, too. Contributions count tokens**2 / steps, fragment by
    fragment.

    merge: "mean", or "radial", the radial-directional average of the same paper: mean(||d||) unit(mean(unit(d))) of
    each tensor's differences d, since those of workers are nearly orthogonal, and their mean is shorter the more there
    are. Embeddings of a Module are averaged plainly, as in the paper. Not with replicas.

    Raises ConfigurationError for numbers that do not go together.
    """

    every: int
    inner: Any
    outer: Rule = field(default_factory=Nesterov)
    rate_rule: bool = True
    fragments: int = 1
    overlap: int = 0
    mix: float = 0.0
    sync: Policy = field(default_factory=Sync)
    scaled: bool = False
    merge: Merge = "mean"

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("fragments", 1), ("overlap", 0)):
            value: object = getattr(self, name)  # users write what they like
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigurationError(
                    f"LocalSteps({name}={value!r}): {name} must be a whole number, {least} or more, as in "
                    f"LocalSteps(every=50, inner=torch.optim.AdamW(model.parameters()), fragments=2, overlap=5)"
                )
        if self.every % self.fragments:
            raise ConfigurationError(
                f"LocalSteps(every={self.every}, fragments={self.fragments}): one fragment is combined each "
                f"every / fragments steps, so every must be a multiple of fragments"
            )
        if self.overlap > self.stride:
            raise ConfigurationError(
                f"LocalSteps(overlap={self.overlap}) must be at most every / fragments = {self.stride} steps: the next "
                f"fragment leaves then"
            )
        if self.merge not in get_args(Merge):
            known = ", ".join(map(repr, get_args(Merge)))
            raise ConfigurationError(f"LocalSteps(merge={self.merge!r}): known are {known}")
        mix: object = self.mix
        if not isinstance(mix, (int, float)) or not 0 <= mix < 1:
            raise ConfigurationError(f"LocalSteps(mix={mix!r}): mix must be a number in [0, 1), the worker's own share")
        if checked(self.sync).compensation is not None:
            raise ConfigurationError(
                f"LocalSteps(sync={self.sync!r}): delay compensation is for gradients; what a window leads to is none. "
                f"Give sync=shoal.Async() and outer=shoal.DelayedNesterov(...)"
            )

    @property
    def decoupled(self) -> bool:
        """Whether no step waits."""
        return isinstance(self.sync, Decoupled)

    @property
    def stride(self) -> int:
        """Inner steps between two fragments."""
        return self.every // self.fragments

    @property
    def _momentum(self) -> bool:
        return isinstance(self.outer, SGD) and self.outer.momentum > 0

    @property
    def _together(self) -> bool:
        """Whether contributions wait for each other, if not for long."""
        return isinstance(self.sync, Decoupled) and (self.sync.quorum > 1 or self.sync.grace > 0)

    @property
    def short(self) -> bool:
        """Whether outer momentum is known to harm in windows so short."""
        return self._momentum and self.every < FULL_WINDOW

    @property
    def harm(self) -> str:
        """What is known to harm in this choice, with its cure; "" where nothing is."""
        if self._momentum and not self.sync.lockstep and not self._together:
            return (
                f"LocalSteps(sync={self.sync!r}) with outer momentum is known to harm: contributions come one by one, "
                f"each a whole step of another age, and momentum adds them up (arXiv 2401.09135); give "
                f"outer=shoal.DelayedNesterov(lr=0.7, momentum=0.9, every=NUMBER_OF_WORKERS)"
            )
        if self.short and not self.rate_rule:
            return (
                f"LocalSteps(every={self.every}, rate_rule=False) with outer momentum is known to harm below about "
                f"{FULL_WINDOW} steps; take more steps, or leave the rate rule on"
            )
        return ""

    @property
    def rule(self) -> Rule:
        """The rule that servers apply: `outer`, or, where that harms and the rate rule is on, something between plain
        averaging at H = 1 and `outer` at H = 10.

        With s = log H / log FULL_WINDOW: momentum s mu, rate 1 + s (eta - 1). An outer step along differences
        that all point the same way is 1 / (1 - mu) times as long as one of them: what spares a long window, whose
        differences hardly do, throws off a short one. Ours; found by `shoal bench learn`.
        """
        if not (self.short and self.rate_rule):
            return self.outer
        assert isinstance(self.outer, SGD)
        share = math.log(self.every) / math.log(FULL_WINDOW)
        momentum, rate = share * self.outer.momentum, 1 + share * (self.outer.lr - 1)
        return replace(self.outer, lr=rate, momentum=momentum, nesterov=self.outer.nesterov and momentum > 0)


def dealt(sizes: list[int], fragments: int) -> tuple[tuple[int, ...], ...]:
    """Which tensors, by index, each fragment has: largest first, each to the fragment that has the fewest elements.

    So fragments weigh about the same, and no step sends more than another; and equal layers fall to them in turn,
    strided, as the paper has it (section 2.2). ConfigurationError where there are fewer tensors.
    """
    if fragments > len(sizes):
        raise ConfigurationError(f"{len(sizes)} tensors make no {fragments} fragments: give LocalSteps fewer of them")
    held: list[list[int]] = [[] for _ in range(fragments)]
    weights = [0] * fragments
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        lightest = min(range(fragments), key=lambda fragment: (weights[fragment], fragment))
        held[lightest].append(index)
        weights[lightest] += sizes[index]
    return tuple(tuple(sorted(indices)) for indices in held)
