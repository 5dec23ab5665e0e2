"""Numbers of a simulated run are symbols.

A staged payload is a tag that names the computation it came from; the state of a block is a digest over all that was
applied to it. So a contribution that is mixed, lost or doubled, even in one block, gives another digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.optim import phases
from shoal.placement import cut
from shoal.vocabulary import Contributor, TableSpec, Weighted

Tag = tuple[int, int, int, int]  # worker, nonce of its life, number of the computation, block
WeightedTags = tuple[tuple[float, Tag], ...]
States = Mapping[int, int]  # by block
Factors = tuple[tuple[str, tuple[float, ...]], ...]

FORGED = -666.0  # a number that only messages of an older epoch carry


def following(
    states: States, combined: Mapping[int, WeightedTags], rates: tuple[float, ...], by: Factors
) -> dict[int, int]:
    """The states of blocks after one more commit; one that no gradient reaches stays as it is."""
    numbers = by_numbers(by)
    return {
        block: hash((state, combined[block], rates, numbers)) if combined[block] else state
        for block, state in states.items()
    }


def by_numbers(factors: Factors) -> tuple[tuple[float, ...], ...]:
    """Factors without the names of their phases: strings hash differently in every process."""
    return tuple(values for _, values in factors)


def measured(
    spec: TableSpec, phase: str, states: States, combined: Mapping[int, WeightedTags], by: Factors
) -> dict[int, tuple[float, ...]]:
    """Partials of a phase: figures that differ if anything that goes into them does."""
    partials: dict[int, tuple[float, ...]] = {}
    for block, state in states.items():
        if not combined[block]:
            continue  # no gradient reaches it
        figure = hash((state, combined[block], by_numbers(by)))
        one, other = float(1 + figure % 9973), float(1 + figure % 8887)
        tensor = cut(spec)[block].tensor
        if phase == phases.MERGE and tensor not in spec.radial:
            continue
        facts = {phases.TRUST: (tensor, one, other), phases.MERGE: (tensor, 2.0, 1.0, 1.0, one, 0.0, other)}
        partials[block] = facts.get(phase, (one,))
    return partials


def combine(
    contributors: Iterable[Weighted], tags: Mapping[Contributor, Mapping[int, Tag]], blocks: Iterable[int]
) -> dict[int, WeightedTags]:
    """What a commit combines in each block, in the order of the commit."""
    parts = [(item.weight, tags.get(item.contributor, {})) for item in contributors]
    return {block: tuple((weight, part[block]) for weight, part in parts if block in part) for block in blocks}
