"""The loops of an update: made for each rule, wire format and way the gradient comes, each one pass over memory.

A loop combines the gradient of one element from what the contributors sent, in worker order and in
float32: g = w0 * d0; g = g + w1 * d1; ...; g = g * factor. What it calls is inlined, so it compiles to
what one would write by hand for that rule and format, and vectorizes. Constants, weights and factor
come as scalars and tuples of scalars: read from an array inside the loop, any store might change them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from shoal.kernel import Floats, element, specialised
from shoal.optim.rule import Constants, Direction, Formula

# Squares are summed in this many interleaved float64 sums, in an order that no compiler or vector
# width changes: element i adds to sum i % LANES. So many elements also make a row: it is combined into
# the nearest cache first, since a short loop of loads leaves the core room to fetch far ahead.
LANES = 128

Sources = tuple[Any, ...]  # arrays (elements,), read only
Weights = tuple[np.float32, ...]
Gradient = Callable[[Callable[[Any], np.float32], Sources, Weights, Any], np.float32]
Loop = Callable[..., None]


def update_loop(
    formula: Formula, states: int, widen: Callable[[Any], Any], narrow: Callable[[Any], Any], gradient: Gradient
) -> Loop:
    """The pass that updates parameters (elements,) and `states` arrays alike in place, all float32.

    published: (elements,) in wire format, takes the updated parameters; or None.
    """
    load, keep = _LOAD[states], _KEEP[states]

    def update(
        parameters: Floats,
        arrays: tuple[Floats, ...],
        constants: Constants,
        sources: Sources,
        weights: Weights,
        factor: np.float32,
        published: Any,
    ) -> None:
        for i in range(parameters.size):
            g = gradient(widen, sources, weights, i) * factor
            p, kept = formula(parameters[i], g, load(arrays, i), constants)
            parameters[i] = p
            keep(arrays, i, kept)
            if published is not None:  # decided when the loop is compiled
                published[i] = narrow(p)

    return specialised(update)


def squares_loop(widen: Callable[[Any], Any], gradient: Gradient) -> Loop:
    """The pass that adds g**2 of the combined gradient to sums (LANES,) float64."""

    def squares(sums: Any, sources: Sources, weights: Weights) -> None:
        elements = sources[0].size
        row = np.empty(LANES, np.float32)
        for start in range(0, elements, LANES):
            length = min(LANES, elements - start)
            for lane in range(length):  # unsigned: an index that might be negative would not vectorize
                row[np.uintp(lane)] = gradient(widen, sources, weights, np.uintp(start + lane))
            for lane in range(length):
                g = np.float64(row[np.uintp(lane)])
                sums[np.uintp(lane)] += g * g

    return specialised(squares)


def trust_loop(direction: Direction, states: int, widen: Callable[[Any], Any], gradient: Gradient) -> Loop:
    """The pass that adds p**2 and u**2 to sums, (LANES,) float64 each, where u is the rule's direction."""
    load = _LOAD[states]

    def trust(
        of_parameters: Any,
        of_updates: Any,
        parameters: Floats,
        arrays: tuple[Floats, ...],
        constants: Constants,
        sources: Sources,
        weights: Weights,
        factor: np.float32,
    ) -> None:
        for start in range(0, parameters.size, LANES):
            for lane in range(min(LANES, parameters.size - start)):
                i = np.uintp(start + lane)
                g = gradient(widen, sources, weights, i) * factor
                u, _ = direction(parameters[i], g, load(arrays, i), constants)
                of_parameters[np.uintp(lane)] += np.float64(parameters[i]) * np.float64(parameters[i])
                of_updates[np.uintp(lane)] += np.float64(u) * np.float64(u)

    return specialised(trust)


# --- how the gradient comes ---------------------------------------------------------------------


@element
def one(widen: Any, sources: Any, weights: Any, i: Any) -> Any:
    """From one contribution."""
    return weights[0] * widen(sources[0][i])


@element
def two(widen: Any, sources: Any, weights: Any, i: Any) -> Any:
    """From two."""
    return weights[0] * widen(sources[0][i]) + weights[1] * widen(sources[1][i])


@element
def more(widen: Any, sources: Any, weights: Any, i: Any) -> Any:
    """From the float32 combination of all but the last, and the last."""
    return sources[0][i] + weights[0] * widen(sources[1][i])


# --- a rule's state arrays, by their number -----------------------------------------------------


@element
def _load_0(arrays: Any, i: Any) -> Any:
    return ()


@element
def _load_1(arrays: Any, i: Any) -> Any:
    return (arrays[0][i],)


@element
def _load_2(arrays: Any, i: Any) -> Any:
    return arrays[0][i], arrays[1][i]


@element
def _load_3(arrays: Any, i: Any) -> Any:
    return arrays[0][i], arrays[1][i], arrays[2][i]


@element
def _keep_0(arrays: Any, i: Any, values: Any) -> None:
    pass


@element
def _keep_1(arrays: Any, i: Any, values: Any) -> None:
    arrays[0][i] = values[0]


@element
def _keep_2(arrays: Any, i: Any, values: Any) -> None:
    arrays[0][i] = values[0]
    arrays[1][i] = values[1]


@element
def _keep_3(arrays: Any, i: Any, values: Any) -> None:
    arrays[0][i] = values[0]
    arrays[1][i] = values[1]
    arrays[2][i] = values[2]


_LOAD = (_load_0, _load_1, _load_2, _load_3)
_KEEP = (_keep_0, _keep_1, _keep_2, _keep_3)
