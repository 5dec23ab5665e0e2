"""One rule over one wire format: a block is read once and written once, whatever the number of contributors.

The same contributions in the same order give the same bits: for parameters and states those of
decode, weigh, add, scale and rule done one after the other in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np

from shoal.kernel import Encoded, Floats, read_only
from shoal.optim import loops
from shoal.optim.loops import LANES, Loop, Sources, Weights
from shoal.optim.rule import Constants, Direction, Formula, Rule

Contributions = Sequence[tuple[Encoded, np.float32]]  # what each contributor sent, and its weight

FORMS = (loops.one, loops.two, loops.more)


class Packing(Protocol):
    """A format that is decoded a piece at a time; codec.Packed has it."""

    def piece(self, encoded: Encoded, start: int, stop: int) -> Encoded: ...
    @property
    def first(self) -> Callable[[Floats, Encoded, np.float32], None]: ...
    @property
    def add(self) -> Callable[[Floats, Encoded, np.float32], None]: ...


class Format(Protocol):
    """What a pass needs of a wire format; codec.Codec has it."""

    def __hash__(self) -> int: ...
    @property
    def item(self) -> Any: ...
    @property
    def published(self) -> Any: ...
    @property
    def packed(self) -> Packing | None: ...
    def bytes_of(self, elements: int) -> int: ...
    @property
    def widen(self) -> Callable[[Any], Any]: ...
    @property
    def narrow(self) -> Callable[[Any], Any]: ...
    @property
    def first(self) -> Callable[[Floats, Encoded, np.float32], None]: ...
    @property
    def add(self) -> Callable[[Floats, Encoded, np.float32], None]: ...


@dataclass(frozen=True)
class Passes:
    """The passes over a block's arrays, all (elements,) contiguous; get one from fused().

    contributions: at least one, in the order in which they combine.
    scratch: float32, a multiple of LANES elements, used from the third contribution on, when a block
    is worked on in pieces of that size whose sum stays in the core's cache. Its size changes no result.
    factor: multiplies the combined gradient; 1 leaves it alone.
    before: the float32 sum of the contributions that come before these, already weighted; None: there are none.
    """

    formula: Formula
    direction: Direction | None
    states: int
    codec: Format

    def update(
        self,
        parameters: Floats,
        states: Sequence[Floats],
        constants: Constants,
        contributions: Contributions,
        factor: np.float32,
        scratch: Floats,
        published: Encoded | None = None,
        before: Floats | None = None,
    ) -> None:
        """Update parameters and states in place; published takes the new parameters in wire format."""
        loop = self._updates[self._form(contributions, before)]
        for piece, sources, weights in self._pieces(contributions, scratch, before, parameters.size):
            arrays = tuple(state[piece] for state in states)
            target = None if published is None else published[piece]
            loop(parameters[piece], arrays, constants, sources, weights, np.float32(factor), target)

    def squares(
        self, contributions: Contributions, scratch: Floats, before: Floats | None = None, elements: int = 0
    ) -> float:
        """The sum of squares of the combined gradient, in float64. elements: of the block, where it is packed."""
        sums = np.zeros(LANES)
        loop = self._squares[self._form(contributions, before)]
        for _, sources, weights in self._pieces(contributions, scratch, before, elements or contributions[0][0].size):
            loop(sums, sources, weights)
        return math.fsum(sums.tolist())

    def trust(
        self,
        parameters: Floats,
        states: Sequence[Floats],
        constants: Constants,
        contributions: Contributions,
        factor: np.float32,
        scratch: Floats,
        before: Floats | None = None,
    ) -> tuple[float, float]:
        """(sum of p**2, sum of u**2) in float64 before the update, u the rule's direction; changes nothing."""
        of_parameters, of_updates = np.zeros(LANES), np.zeros(LANES)
        loop = self._trusts[self._form(contributions, before)]
        for piece, sources, weights in self._pieces(contributions, scratch, before, parameters.size):
            arrays = tuple(state[piece] for state in states)
            loop(of_parameters, of_updates, parameters[piece], arrays, constants, sources, weights, np.float32(factor))
        return math.fsum(of_parameters.tolist()), math.fsum(of_updates.tolist())

    def warm(self, constants: Constants, *, squares: bool = False, published: bool = False) -> None:
        """Compile the loops (or load them from disk), so that no step waits for it.

        constants: any of the rule's. squares: whether gradients will be measured, for clip_norm;
        published: whether update will be given memory to publish in.
        """
        parameters, scratch, factor = np.zeros(1, np.float32), np.zeros(LANES, np.float32), np.float32(1)
        states = [np.zeros(1, np.float32) for _ in range(self.states)]
        encoded = np.zeros(self.codec.bytes_of(1), np.uint8).view(self.codec.item)
        target = np.zeros(1, self.codec.published) if published else None
        for count in range(1, len(FORMS) + 1):
            contributions = [(encoded, np.float32(0))] * count
            if squares:
                self.squares(contributions, scratch, elements=1)
            if self.direction is not None:
                self.trust(parameters, states, constants, contributions, factor, scratch)
            self.update(parameters, states, constants, contributions, factor, scratch, target)

    def _pieces(
        self, contributions: Contributions, scratch: Floats, before: Floats | None, elements: int
    ) -> Iterator[tuple[slice, Sources, Weights]]:
        """Where each piece of the block lies, and the sources and weights that its form of loop takes."""
        arrays = tuple(read_only(encoded) for encoded, _ in contributions)
        weights = tuple(np.float32(weight) for _, weight in contributions)
        packed = self.codec.packed
        if packed is not None:
            yield from _unpacked(packed, arrays, weights, scratch, before, elements)
            return
        if before is not None and len(arrays) == 1:
            yield slice(None), (before, *arrays), weights
            return
        if self._form(contributions, before) < FORMS.index(loops.more):
            yield slice(None), arrays, weights
            return
        for start in range(0, elements, scratch.size):
            piece = slice(start, min(start + scratch.size, elements))
            total = scratch[: piece.stop - start]
            combine = self.codec.first
            if before is not None:
                total[:] = before[piece]
                combine = self.codec.add
            for array, weight in zip(arrays[:-1], weights[:-1], strict=True):
                combine(total, array[piece], weight)
                combine = self.codec.add
            yield piece, (total, arrays[-1][piece]), weights[-1:]

    def _form(self, contributions: Contributions, before: Floats | None) -> int:
        """Which of FORMS combines so many. What is packed is summed up before its loop: as if it were one."""
        assert contributions, "a block that nobody contributed to has no gradient, and is not passed over"
        if self.codec.packed is not None:
            return FORMS.index(loops.one)
        return len(FORMS) - 1 if before is not None else min(len(contributions), len(FORMS)) - 1

    # Compiled when first called.

    @cached_property
    def _updates(self) -> tuple[Loop, ...]:
        codec = self.codec
        return tuple(
            loops.update_loop(self.formula, self.states, codec.widen, codec.narrow, gradient) for gradient in FORMS
        )

    @cached_property
    def _squares(self) -> tuple[Loop, ...]:
        return tuple(loops.squares_loop(self.codec.widen, gradient) for gradient in FORMS)

    @cached_property
    def _trusts(self) -> tuple[Loop, ...]:
        assert self.direction is not None, "only a rule with a direction is asked for its trust"
        return tuple(loops.trust_loop(self.direction, self.states, self.codec.widen, gradient) for gradient in FORMS)


def fused(rule: Rule, codec: Format) -> Passes:
    """The passes of a rule over blocks in a codec's format; one object for all rules of the same formula."""
    return _fused(rule.formula, rule.direction, len(rule.states), codec)


@cache
def _fused(formula: Formula, direction: Direction | None, states: int, codec: Format) -> Passes:
    return Passes(formula, direction, states, codec)


def _unpacked(
    packed: Packing,
    arrays: tuple[Encoded, ...],
    weights: Weights,
    scratch: Floats,
    before: Floats | None,
    elements: int,
) -> Iterator[tuple[slice, Sources, Weights]]:
    """The same for packed contributions: their sum, a piece at a time, in the core's cache. scratch: whole records."""
    for start in range(0, elements, scratch.size):
        stop = min(start + scratch.size, elements)
        total, combine = scratch[: stop - start], packed.first
        if before is not None:
            total[:] = before[start:stop]
            combine = packed.add
        for array, weight in zip(arrays, weights, strict=True):
            combine(total, packed.piece(array, start, stop), weight)
            combine = packed.add
        yield slice(start, stop), (total,), (np.float32(1),)
