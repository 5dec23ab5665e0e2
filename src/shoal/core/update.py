"""One commit's update of a shard: what is done to each block, in one pass over its memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from shoal.codec.codec import FLOAT32, mixed
from shoal.core import machine as k
from shoal.core.combined import Combined
from shoal.core.merging import products
from shoal.core.table import Blocks, Run, Table
from shoal.kernel import Encoded, Floats
from shoal.optim import phases
from shoal.optim.passes import Contributions, Passes, fused
from shoal.optim.rule import Constants
from shoal.vocabulary import TOKENS, Weighted


class Staged(Protocol):
    """What one contributor sent: blocks by position, of which only those delivered (by index) count."""

    @property
    def blocks(self) -> Blocks: ...
    @property
    def delivered(self) -> Collection[int]: ...
    @property
    def memory(self) -> memoryview: ...


@dataclass(frozen=True)
class Update:
    """One commit's combined gradient over the blocks of a table, never in memory as a whole."""

    table: Table
    rates: tuple[float, ...]  # by parameter group
    ratios: tuple[float, ...]  # by tensor; empty without the trust phase
    factor: np.float32  # clips the combined gradient; 1 without the gradient phase
    merged: tuple[float, ...]  # by tensor, the weight of each contribution; empty without the merge phase
    contributions: tuple[tuple[Staged | None, np.float32], ...]  # in the order in which they combine; None: not here
    combined: Combined | None = None  # the first of them, for some blocks
    agreed: int = 0  # how many contributions the sums may take in
    summed: bool = False  # the one contribution is the sum of all, in float32
    known: dict[tuple[int, float, int], Constants] = field(default_factory=dict)  # most blocks share them

    @classmethod
    def of(
        cls,
        table: Table,
        task: k.Measure | k.Apply,
        staged: Callable[[Weighted], Staged | None],
        combined: Combined | None = None,
    ) -> Update:
        factor, ratios, merged = _factors(task)
        agreed = 0 if combined is None else combined.agreed(task.contributors)
        contributions = weighted(task.contributors, staged)
        return cls(table, task.rates, ratios, factor, merged, contributions, combined if agreed else None, agreed)

    @classmethod
    def of_sum(cls, table: Table, task: k.Measure | k.Apply, held: Staged) -> Update:
        """The same of contributions whose sum is held."""
        factor, ratios, _ = _factors(task)
        return cls(table, task.rates, ratios, factor, (), ((held, np.float32(1)),), summed=True)

    @property
    def by_runs(self) -> bool:
        """Whether all contributed to all blocks, which are at the same step: then runs can be updated at once. Not
        where each block has weights of its own."""
        table, steps = self.table, self.table.dense.steps
        here = self.staged
        everywhere = all(len(staged.delivered) == len(table.blocks) for staged, _ in here)
        plain = self.combined is None and not self.ratios and not table.absent
        plain = plain and table.spec.reduction != TOKENS and not self.merged
        return bool(table.runs and here and everywhere and plain and (steps == steps[0]).all())

    @property
    def staged(self) -> list[tuple[Staged, np.float32]]:
        """The contributions that have anything here."""
        return [(staged, weight) for staged, weight in self.contributions if staged is not None]

    def contributed(self, position: int) -> tuple[Floats | None, Contributions]:
        """What the contributors sent for the block, with their weights; who sent none counts as zero. What was
        combined already comes first, as its sum."""
        if weights := self.weights(position):
            pairs = zip(self.contributions, weights, strict=True)
            return None, of_block(self.table, [(staged, weight) for (staged, _), weight in pairs], position, plain=True)
        if self.combined is not None and self.combined.filled[position]:
            taken = self.combined.taken[position]
            rest = of_block(self.table, self.contributions[taken:], position) if taken <= self.agreed else []
            if rest:
                return self.combined.sums[position], rest
        return None, of_block(self.table, self.contributions, position)

    def weights(self, position: int) -> tuple[np.float32, ...]:
        """Of the contributions, as the merge phase found them for the block's tensor; (): as they were."""
        count, tensor = len(self.contributions), self.table.blocks[position].tensor
        found = self.merged[tensor * count : (tensor + 1) * count]
        return () if phases.PLAIN in found else tuple(np.float32(weight) for weight in found)

    def passes(self, position: int) -> Passes:
        """The loops of the block's rule and wire format."""
        table = self.table
        gradient = FLOAT32 if self.summed else table.pushes[position]
        return fused(table.rules[table.group(position)], mixed(gradient, table.codecs[position]))

    def constants(self, position: int) -> Constants:
        """The rule's constants for the block's next step."""
        tensor, group = self.table.blocks[position].tensor, self.table.group(position)
        rate = self.rates[group] * (self.ratios[tensor] if self.ratios else 1.0)
        step = int(self.table.dense.steps[position]) + 1
        found = self.known.get((group, rate, step))
        if found is None:
            found = self.known[group, rate, step] = self.table.rules[group].constants(step, rate)
        return found


def _factors(task: k.Measure | k.Apply) -> tuple[np.float32, tuple[float, ...], tuple[float, ...]]:
    """What clips the gradient, the trust ratios, and merged weights."""
    factors = dict(task.factors)
    (factor,) = factors.get(phases.GRADIENT, (1.0,))
    return np.float32(factor), factors.get(phases.TRUST, ()), factors.get(phases.MERGE, ())


def weighted(
    contributors: Sequence[Weighted], staged: Callable[[Weighted], Staged | None]
) -> tuple[tuple[Staged | None, np.float32], ...]:
    """Where each contribution lies, and its weight; None: all its blocks are elsewhere."""
    return tuple((staged(item), np.float32(item.weight)) for item in contributors)


def of_block(
    table: Table, contributions: Sequence[tuple[Staged | None, np.float32]], position: int, plain: bool = False
) -> list[tuple[Encoded, np.float32]]:
    """What was sent for one block; weighed by tokens, weights add up to 1 over those who sent any. plain: not these."""
    index = table.blocks[position].index
    found = [
        (staged.blocks[position], weight)
        for staged, weight in contributions
        if staged is not None and index in staged.delivered
    ]
    if plain or table.spec.reduction != TOKENS:
        return found
    total = math.fsum(float(weight) for _, weight in found)
    return [(encoded, np.float32(float(weight) / total)) for encoded, weight in found]


def apply_block(update: Update, position: int, scratch: Floats) -> bool:
    """Combine what was contributed to the block, and let its rule update it; False: without a gradient it keeps its
    state."""
    before, contributions = update.contributed(position)
    if not contributions:
        return False
    dense = update.table.dense
    update.passes(position).update(
        dense.parameters[position],
        dense.states[position],
        update.constants(position),
        contributions,
        update.factor,
        scratch,
        update.table.published[position],
        before,
    )
    dense.steps[position] += 1
    return True


def apply_run(update: Update, run: Run, scratch: Floats) -> None:
    """The same for a run of blocks, but for their step counts; see Update.by_runs."""
    update.passes(run.position).update(
        run.parameters,
        run.states,
        update.constants(run.position),
        [(floats_of(staged)[run.start : run.stop], weight) for staged, weight in update.staged],
        update.factor,
        scratch,
    )


def floats_of(staged: Staged) -> Floats:
    """A contributor's memory as a run of blocks lies in it."""
    return np.frombuffer(staged.memory, np.float32)


def gradient_partial(update: Update, position: int, scratch: Floats) -> tuple[float, ...]:
    """(sum of g**2,), or nothing for a block without a gradient."""
    before, contributions = update.contributed(position)
    elements = update.table.blocks[position].elements
    return (update.passes(position).squares(contributions, scratch, before, elements),) if contributions else ()


def trust_partial(update: Update, position: int, scratch: Floats) -> tuple[float, ...]:
    """(tensor, sum of p**2, sum of u**2), or nothing for a block without a gradient."""
    before, contributions = update.contributed(position)
    if not contributions:
        return ()
    dense = update.table.dense
    weights, updates = update.passes(position).trust(
        dense.parameters[position],
        dense.states[position],
        update.constants(position),
        contributions,
        update.factor,
        scratch,
        before,
    )
    return (float(update.table.blocks[position].tensor), weights, updates)


def merge_partial(update: Update, position: int, scratch: Floats) -> tuple[float, ...]:
    """(tensor, n, n weights, n (n + 1) / 2 inner products) of all n contributions, zeros for those that sent nothing;
    or nothing for a block that is not merged so, or without a gradient."""
    table, block = update.table, update.table.blocks[position]
    here = [staged is not None and block.index in staged.delivered for staged, _ in update.contributions]
    if block.tensor not in table.spec.radial or not any(here):
        return ()
    sent = [staged.blocks[position] for staged, _ in update.staged if block.index in staged.delivered]
    values = iter(products(FLOAT32 if update.summed else table.pushes[position], sent, block.elements))
    weights = [float(weight) if there else 0.0 for (_, weight), there in zip(update.contributions, here, strict=True)]
    count = len(here)
    pairs = [(one, other) for one in range(count) for other in range(one, count)]
    found = [next(values) if here[one] and here[other] else 0.0 for one, other in pairs]
    return (float(block.tensor), float(count), *weights, *found)


MEASURES = {phases.MERGE: merge_partial, phases.GRADIENT: gradient_partial, phases.TRUST: trust_partial}
