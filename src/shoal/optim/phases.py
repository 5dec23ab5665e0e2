"""Facts that a rule needs about the whole model before any block is updated.

Every shard measures its own blocks (Measure), the coordinator reduces what they found to one value
or one per tensor. Partials come per block and are summed without rounding (math.fsum), so the
result does not depend on how many servers there are or on who answered first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from shoal.optim.registry import rule_type
from shoal.vocabulary import TableSpec

MERGE = "merge"  # partials (tensor, weights, inner products); reduces to the weight of each contributor, by tensor
GRADIENT = "gradient"  # partials (sum of g**2,); reduces to (clip factor,)
TRUST = "trust"  # partials (tensor, sum of p**2, sum of u**2); reduces to LAMB's ratio per tensor

PLAIN = -1.0  # in what MERGE reduces to: nothing changes

Partial = tuple[float, ...]


def phases(spec: TableSpec) -> tuple[str, ...]:
    """The phases of each update of this table, in order."""
    merge, gradient = (MERGE,) if spec.radial else (), (GRADIENT,) if spec.clip_norm is not None else ()
    return merge + gradient + rule_type(spec.rule).phases


def reduce(spec: TableSpec, phase: str, partials: Mapping[int, Partial]) -> tuple[float, ...]:
    """What the partials of all blocks add up to. Blocks without a gradient are absent from partials."""
    match phase:
        case "merge":
            return _merged_weights(len(spec.tensors), partials)
        case "gradient":
            assert spec.clip_norm is not None, "the gradient is measured for clip_norm only"
            return (_clip_factor(spec.clip_norm, math.fsum(squares for (squares,) in partials.values())),)
        case "trust":
            return _trust_ratios(len(spec.tensors), partials)
        case other:
            raise ValueError(f"unknown phase {other!r}")


def _clip_factor(clip_norm: float, squares: float) -> float:
    """min(1, clip_norm / (norm + 1e-6)) in float32, as torch.nn.utils.clip_grad_norm_; NaN stays NaN."""
    norm = np.float32(math.sqrt(squares))
    return float(np.minimum(np.float32(clip_norm) / (norm + np.float32(1e-6)), np.float32(1)))


def _trust_ratios(tensors: int, partials: Mapping[int, Partial]) -> tuple[float, ...]:
    """||p|| / ||u|| of each tensor; 1 where either is 0, or where no block had a gradient."""
    weights: list[list[float]] = [[] for _ in range(tensors)]
    updates: list[list[float]] = [[] for _ in range(tensors)]
    for tensor, weight, update in partials.values():
        weights[int(tensor)].append(weight)
        updates[int(tensor)].append(update)
    norms = [(math.sqrt(math.fsum(w)), math.sqrt(math.fsum(u))) for w, u in zip(weights, updates, strict=True)]
    return tuple(w / u if w > 0 and u > 0 else 1.0 for w, u in norms)


def _merged_weights(tensors: int, partials: Mapping[int, Partial]) -> tuple[float, ...]:
    """For each tensor, the factor of each contributor, such that their sum is the radial-directional average.

    Decoupled DiLoCo, arXiv 2604.21428: mean(||d||) unit(mean(unit(d))), both means weighted. Contributions of workers
    are nearly orthogonal, so that a plain mean is shorter the more of them there are. A partial is (tensor, n, the
    weights of n contributors, inner products of each with itself and those after it); weight 0: it sent none of the
    block. PLAIN: the tensor is combined as it would be without this.
    """
    found: dict[int, list[Partial]] = {}
    for partial in partials.values():
        found.setdefault(int(partial[0]), []).append(partial)
    count = max((int(partial[1]) for partial in partials.values()), default=0)
    plain = (PLAIN,) * count
    return tuple(weight for t in range(tensors) for weight in (_radial(count, found[t]) if t in found else plain))


def _radial(count: int, partials: list[Partial]) -> tuple[float, ...]:
    """Of one tensor."""
    weights = [max(partial[2 + one] for partial in partials) for one in range(count)]
    sums = [math.fsum(values) for values in zip(*(partial[2 + count :] for partial in partials), strict=True)]
    pairs = [(one, other) for one in range(count) for other in range(one, count)]
    lengths = [math.sqrt(value) for value, (one, other) in zip(sums, pairs, strict=True) if one == other]
    total = math.fsum(weights)
    mean = tuple(weight / total for weight in weights)
    if sum(weight > 0 for weight in weights) == 1:
        return mean
    units = [w / length if length > 0 else 0.0 for w, length in zip(weights, lengths, strict=True)]
    terms = [units[i] * units[j] * value * (1 + (i != j)) for value, (i, j) in zip(sums, pairs, strict=True)]
    square, radius = math.fsum(terms), math.fsum(w * length for w, length in zip(mean, lengths, strict=True))
    if not square > 0:  # all are zero, or they cancel each other: there is no direction
        return mean
    return tuple(radius * unit / math.sqrt(square) for unit in units)
