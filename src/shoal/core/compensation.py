"""Delay compensation: gradients of stale parameters, made up for what has changed since (policy.DelayCompensated).

DC-ASGD (Zheng et al., arXiv 1609.08326, algorithm 2): g' = g + lambda g g (now - then), element by element, with
lambda constant or rate / sqrt(square + 1e-7), square = mean_square square + (1 - mean_square) g g. `then` is what the
worker was given: the published copy where a tensor has a pull codec. The server that leads a shard keeps it, as one
copy for all workers of a version, made when an update is about to change the parameters that somebody still computes
on, and dropped with the first update after nobody does. Copies and squares are that server's own: one that takes its
place takes what was computed before as it is, once for each worker, and its squares begin anew. What is measured,
clipped, applied and sent to replicas is the compensated gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shoal.core import machine as k
from shoal.core.combined import Combined
from shoal.core.sums import Sum
from shoal.core.table import Table
from shoal.core.update import Staged, of_block
from shoal.kernel import Floats, kernel, read_only
from shoal.policy import from_spec

EPSILON = np.float32(1e-7)

Each = Callable[[Sequence[int], Callable[[int, Floats], object]], object]  # work(position, scratch) for each position
Given = tuple[tuple[Staged | None, np.float32], ...]  # contributions, with their weights


class Compensator:
    """Of one shard's table; a task's own."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._copies: dict[int, tuple[Floats, ...]] = {}  # by version: the blocks by position
        self._spare: tuple[Floats, ...] | None = None  # a first touch takes ten times as long as a copy
        self._squares: tuple[Floats, ...] = ()  # by position, once there are any
        self._sums: Sequence[Floats] | None = None  # memory for a compensated gradient
        if from_spec(table.spec.policy).compensation is not None:
            self.warm()

    @property
    def versions(self) -> tuple[int, ...]:
        """Whose parameters are kept."""
        return tuple(sorted(self._copies))

    @property
    def squares(self) -> tuple[Floats, ...]:
        """The running mean of g g, by position; () before the first."""
        return self._squares

    def keep(self, task: k.Compensation | None, each: Each) -> None:
        """Parameters are about to change: keep a copy if anybody needs it, and none that nobody needs any more."""
        needed = () if task is None else task.needed
        for version in set(self._copies).difference(needed):
            self._spare = self._copies.pop(version)
        if task is None:
            self._spare, self._squares, self._sums = None, (), None
        elif task.present in needed and task.present not in self._copies:
            copy, self._spare = self._spare or self._memory(np.empty), None
            each(range(len(copy)), lambda position, _: np.copyto(copy[position], self._table.served(position)))
            self._copies[task.present] = copy

    def gradient(self, task: k.Compensation, contributions: Given, applies: bool, each: Each, summed: bool) -> Sum:
        """The compensated gradient of these contributions. applies: it is in the log, and joins the squares, once.
        summed: no more than that; elsewhere it was made up for already."""
        table = self._table
        self.prepare(task)
        combined = Combined.of(table, self._sums)
        self._sums = combined.sums

        def work(position: int, scratch: Floats) -> None:
            found = of_block(table, contributions, position)
            if not found:
                return
            combined.add(table, position, found, scratch)
            gradient = combined.sums[position]
            if applies:
                self._follow(task, position, gradient)
            if not summed:
                self._make_up(task, position, gradient, followed=applies)

        each(range(len(table.blocks)), work)
        delivered = {table.blocks[position].index for position, filled in enumerate(combined.filled) if filled}
        return Sum(memoryview(b""), list(combined.sums), delivered)

    def make_up(self, task: k.Compensation, position: int, gradient: Floats) -> None:
        """The same for one block of a sum that is not in the log yet, in place."""
        self._make_up(task, position, gradient, followed=False)

    def prepare(self, task: k.Compensation) -> None:
        """Before any block: memory for squares, if they are needed."""
        if task.mean_square and not self._squares:
            self._squares = self._memory(np.zeros)

    def _follow(self, task: k.Compensation, position: int, gradient: Floats) -> None:
        if task.mean_square:
            kept = np.float32(task.mean_square)
            _follow(self._squares[position], read_only(gradient), kept, np.float32(1) - kept)

    def _make_up(self, task: k.Compensation, position: int, gradient: Floats, followed: bool) -> None:
        """In place. followed: the squares have this gradient in them already."""
        now, then = self._table.dense.parameters[position], self._then(task, position)
        if then is None or then is now:
            return
        rate, arrays = np.float32(task.rate), (gradient, read_only(now), read_only(then))
        if not task.mean_square:
            _by_rate(*arrays, rate)
            return
        kept = np.float32(1 if followed else task.mean_square)
        _by_squares(*arrays, read_only(self._squares[position]), rate, kept, np.float32(1) - kept)

    @staticmethod
    def warm() -> None:
        """Compile the loops (or load them from disk), so that no step waits for it."""
        one, zero = np.ones(1, np.float32), np.float32(0)
        _follow(one.copy(), read_only(one), zero, zero)
        _by_rate(one.copy(), read_only(one), read_only(one), zero)
        _by_squares(one.copy(), *(read_only(one),) * 3, zero, zero, zero)

    def _then(self, task: k.Compensation, position: int) -> Floats | None:
        """What the worker was given of the block; None: it is not known any more."""
        if task.base in self._copies:
            return self._copies[task.base][position]
        return self._table.served(position) if task.base == task.present else None

    def _memory(self, make: Callable[[int, type[np.float32]], Floats]) -> tuple[Floats, ...]:
        """An array like each block's, all in one piece of memory."""
        ends = np.cumsum([block.elements for block in self._table.blocks]).tolist()
        memory = make(ends[-1] if ends else 0, np.float32)
        return tuple(memory[start:stop] for start, stop in zip([0, *ends], ends, strict=False))


@kernel
def _follow(squares: Floats, gradient: Floats, kept: np.float32, rest: np.float32) -> None:
    for i in range(squares.size):
        g = gradient[i]
        squares[i] = kept * squares[i] + rest * (g * g)


@kernel
def _by_rate(gradient: Floats, now: Floats, then: Floats, rate: np.float32) -> None:
    for i in range(gradient.size):
        g = gradient[i]
        gradient[i] = g + rate * (g * g) * (now[i] - then[i])


@kernel
def _by_squares(
    gradient: Floats, now: Floats, then: Floats, squares: Floats, rate: np.float32, kept: np.float32, rest: np.float32
) -> None:
    for i in range(gradient.size):
        g = gradient[i]
        square = kept * squares[i] + rest * (g * g)
        gradient[i] = g + rate / np.sqrt(square + EPSILON) * (g * g) * (now[i] - then[i])
