"""Consistency policies: small frozen values with pure functions over a view of the job.

Sync is bulk synchronous parallel; with a quorum below 1 it is Sync with backup workers (Chen et
al. 2016, arXiv 1604.00981): gradients that come after their commit are dropped. Bounded is stale
synchronous parallel (Ho et al. 2013): a worker's parameters contain every contribution of every
live worker for clocks up to its own minus the staleness bound. Async is Bounded without a bound.

With a grace Sync waits a little longer for those that the quorum leaves behind. Decoupled is that without a common
clock: whatever is ready when quorum and grace are over is one commit, and who comes later is in the next (Decoupled
DiLoCo, arXiv 2604.21428).

Bounded and Async may take the age of a contribution into account, the updates since the version it was computed on
(core/ages.py): by a weight, as in staleness-aware Async-SGD (Zhang et al. 2016, arXiv 1511.05950, equation 5, which
divides the learning rate by the staleness), by a bound, above which a contribution is dropped, or by compensation for
what has changed meanwhile (DC-ASGD: Zheng et al. 2017, arXiv 1609.08326), which servers do (core/compensation.py).
"""

from __future__ import annotations

from shoal.policy.base import Go, Policy, View, Wait
from shoal.policy.delay import DelayCompensated
from shoal.policy.kinds import Async, Bounded, Decoupled, Sync, checked, from_spec, rests
from shoal.policy.words import harm, in_words, parsed

__all__ = [
    "Async",
    "Bounded",
    "Decoupled",
    "DelayCompensated",
    "Go",
    "Policy",
    "Sync",
    "View",
    "Wait",
    "checked",
    "from_spec",
    "harm",
    "in_words",
    "parsed",
    "rests",
]
