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

GRADIENT = "gradient"  # partials (sum of g**2,); reduces to (clip factor,)
TRUST = "trust"  # partials (tensor, sum of p**2, sum of u**2); reduces to LAMB's ratio per tensor

Partial = tuple[float, ...]


def phases(spec: TableSpec) -> tuple[str, ...]:
    """The phases of each update of this table, in order."""
    return ((GRADIENT,) if spec.clip_norm is not None else ()) + rule_type(spec.rule).phases


def reduce(spec: TableSpec, phase: str, partials: Mapping[int, Partial]) -> tuple[float, ...]:
    """What the partials of all blocks add up to. Blocks without a gradient are absent from partials."""
    match phase:
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
