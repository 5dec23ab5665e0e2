"""The methods of `shoal bench learn`, a row each. Their sources are named in docs/codecs.md, docs/local_steps.md and
docs/staleness.md."""

from __future__ import annotations

from typing import Literal

import msgspec

from shoal.policy import Policy
from shoal.policy.words import parsed


class Method(msgspec.Struct, frozen=True):
    """One row. sync: the policy, as `shoal policy set` takes it. every: inner steps between two exchanges; 0: none,
    each step is the servers'. outer_rate, momentum: of the outer step; delayed: it is Delayed Nesterov. fragments,
    overlap, mix, scaled, merge: see shoal.LocalSteps. late: how much longer the last worker takes. speeds: steps of
    each worker in STEP_SECONDS, kept by sleeping; empty: as they can. whole: one worker more than the others have, each
    of whose contributions is of as many samples as a step of all of theirs: so there are as many commits as in sync,
    and each contribution is as many commits old as the others have workers. killed: SIGKILL of the last worker in the
    middle of a window halfway, which is started again.
    """

    name: str
    what: str
    push: str = ""
    pull: str = ""
    sync: str = "Sync()"
    every: int = 0
    outer_rate: float = 0.7
    momentum: float = 0.9
    fragments: int = 1
    overlap: int = 0
    mix: float = 0.0
    scaled: bool = False
    merge: Literal["mean", "radial"] = "mean"
    late: float = 0.0
    delayed: bool = False
    speeds: tuple[float, ...] = ()
    whole: bool = False
    killed: bool = False

    @property
    def policy(self) -> Policy:
        return parsed(self.sync)

    @property
    def leased(self) -> bool:
        """Workers lease samples, whoever comes first, in place of taking turns at them."""
        return not self.policy.lockstep


UNEVEN = (1.72, 1.33, 0.66, 0.156)  # 11 to 1
METHODS = {
    method.name: method
    for method in (
        Method("sync", "Sync, dense"),
        Method("sync-bfloat16", "Sync, bfloat16", push="bfloat16", pull="bfloat16"),
        Method("sync-float16", "Sync, float16", push="float16", pull="float16"),
        Method("sync-int8", "Sync, int8", push="int8", pull="int8"),
        Method("sync-int4", "Sync, int4", push="int4", pull="int4"),
        Method("sync-e3m0", "Sync, e3m0", push="e3m0", pull="e3m0"),
        Method("sync-2bit", "Sync, 2 bits with error feedback, int8 back", push="2bit", pull="int8"),
        Method("sync-sign", "Sync, signs with error feedback, int8 back", push="sign", pull="int8"),
        Method("sync-topk", "Sync, 1 in 64, the largest, int8 back", push="topk", pull="int8"),
        Method("sync-randomk", "Sync, 1 in 64, any, int8 back", push="randomk", pull="int8"),
        Method("sync-powersgd2", "Sync, PowerSGD of rank 2, int8 back", push="powersgd2", pull="int8"),
        Method("sync-quorum", "Sync, slowest of four dropped", sync="Sync(quorum=0.75)", late=1.0),
        Method("diloco", "DiLoCo, H=50", every=50),
        Method("diloco-e3m0", "DiLoCo, H=50, e3m0", every=50, push="e3m0", pull="e3m0"),
        Method("diloco-2bit", "DiLoCo, H=50, 2 bits with error feedback", every=50, push="2bit", pull="e3m0"),
        Method("average", "plain averaging, H=50", every=50, outer_rate=1.0, momentum=0.0),
        Method("diloco-h10", "DiLoCo, H=10", every=10),
        Method("diloco-h2", "DiLoCo, H=2, rate rule on", every=2),
        Method("diloco-radial", "DiLoCo, H=50, radial-directional average", every=50, merge="radial"),
        Method(
            "streaming",
            "Streaming DiLoCo, H=50, e3m0",
            push="e3m0",
            pull="e3m0",
            every=50,
            fragments=2,
            overlap=5,
            mix=0.5,
        ),
        Method("async-naive", "asynchronous, H=50, 11:1, Nesterov", sync="Async()", every=50, speeds=UNEVEN),
        Method("async-dn", "the same, Delayed Nesterov", sync="Async()", every=50, speeds=UNEVEN, delayed=True),
        Method(
            "async-dylu",
            "the same, Delayed Nesterov, fewer steps for the slow",
            sync="Async()",
            every=50,
            speeds=UNEVEN,
            delayed=True,
            scaled=True,
        ),
        Method(
            "decoupled",
            "Decoupled, H=50, 11:1, two of four",
            sync="Decoupled(quorum=2, grace=0.25)",
            every=50,
            speeds=UNEVEN,
        ),
        Method("sync-int4-killed", "Sync, int4, a worker killed", push="int4", pull="int4", killed=True),
        Method(
            "diloco-e3m0-killed", "DiLoCo, H=50, e3m0, a worker killed", every=50, push="e3m0", pull="e3m0", killed=True
        ),
        Method("async-adamw", "Async, AdamW on servers, staleness 4", sync="Async()", whole=True),
        Method(
            "async-adamw-inverse", "Async, AdamW, staleness 4, 1 / (1 + s)", sync='Async(weight="inverse")', whole=True
        ),
        Method(
            "async-adamw-dc", "Async, AdamW, staleness 4, DC-ASGD", sync="Async(weight=DelayCompensated())", whole=True
        ),
    )
}
