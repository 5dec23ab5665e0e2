"""One commit's update of a shard: what is done to each block, in one pass over its memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from shoal.core import machine as k
from shoal.core.table import Blocks, Run, Table
from shoal.kernel import Floats
from shoal.optim import phases
from shoal.optim.passes import Contributions, Passes, fused
from shoal.optim.rule import Constants
from shoal.vocabulary import Weighted


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
    contributions: tuple[tuple[Staged, np.float32], ...]  # in the order in which they combine
    known: dict[tuple[int, float, int], Constants] = field(default_factory=dict)  # most blocks share them

    @classmethod
    def of(cls, table: Table, task: k.Measure | k.Apply, staged: Callable[[Weighted], Staged | None]) -> Update:
        factors = dict(task.factors)
        (factor,) = factors.get(phases.GRADIENT, (1.0,))
        found = [(staged(item), np.float32(item.weight)) for item in task.contributors]
        # One whose blocks are all elsewhere has nothing here.
        contributions = tuple((part, weight) for part, weight in found if part is not None)
        return cls(table, task.rates, factors.get(phases.TRUST, ()), np.float32(factor), contributions)

    @property
    def by_runs(self) -> bool:
        """Whether all contributed to all blocks, which are at the same step: then runs can be updated at once."""
        table, steps = self.table, self.table.dense.steps
        everywhere = all(len(staged.delivered) == len(table.blocks) for staged, _ in self.contributions)
        return bool(table.runs and self.contributions and everywhere and not self.ratios and (steps == steps[0]).all())

    def contributed(self, position: int) -> Contributions:
        """What the contributors sent for the block, with their weights; who sent none counts as zero."""
        index = self.table.blocks[position].index
        return [(staged.blocks[position], weight) for staged, weight in self.contributions if index in staged.delivered]

    def passes(self, position: int) -> Passes:
        """The loops of the block's rule and wire format."""
        return fused(self.table.rules[self.table.group(position)], self.table.codecs[position])

    def constants(self, position: int) -> Constants:
        """The rule's constants for the block's next step."""
        tensor, group = self.table.blocks[position].tensor, self.table.group(position)
        rate = self.rates[group] * (self.ratios[tensor] if self.ratios else 1.0)
        step = int(self.table.dense.steps[position]) + 1
        found = self.known.get((group, rate, step))
        if found is None:
            found = self.known[group, rate, step] = self.table.rules[group].constants(step, rate)
        return found


def apply_block(update: Update, position: int, scratch: Floats) -> None:
    """Combine what was contributed to the block, and let its rule update it; without a gradient it keeps its state."""
    contributions = update.contributed(position)
    if not contributions:
        return
    dense = update.table.dense
    update.passes(position).update(
        dense.parameters[position],
        dense.states[position],
        update.constants(position),
        contributions,
        update.factor,
        scratch,
        update.table.published[position],
    )
    dense.steps[position] += 1


def apply_run(update: Update, run: Run, scratch: Floats) -> None:
    """The same for a run of blocks, but for their step counts; see Update.by_runs."""
    update.passes(run.position).update(
        run.parameters,
        run.states,
        update.constants(run.position),
        [(floats_of(staged)[run.start : run.stop], weight) for staged, weight in update.contributions],
        update.factor,
        scratch,
    )


def floats_of(staged: Staged) -> Floats:
    """A contributor's memory as a run of blocks lies in it."""
    return np.frombuffer(staged.memory, np.float32)


def gradient_partial(update: Update, position: int, scratch: Floats) -> tuple[float, ...]:
    """(sum of g**2,), or nothing for a block without a gradient."""
    contributions = update.contributed(position)
    return (update.passes(position).squares(contributions, scratch),) if contributions else ()


def trust_partial(update: Update, position: int, scratch: Floats) -> tuple[float, ...]:
    """(tensor, sum of p**2, sum of u**2), or nothing for a block without a gradient."""
    contributions = update.contributed(position)
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
    )
    return (float(update.table.blocks[position].tensor), weights, updates)


MEASURES = {phases.GRADIENT: gradient_partial, phases.TRUST: trust_partial}
