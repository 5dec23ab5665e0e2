"""Planted faults: machines that are wrong in one way each, to prove that the simulation would see it.

Each plant names the invariant that must catch it. A plant overrides as little as it can, so that
everything else goes on as in the real machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.core.coordinator import Coordinator
from shoal.core.session import Session
from shoal.sim import planted_coordinators as coordinators
from shoal.sim import planted_replicas as replicas
from shoal.sim import planted_samples as samples
from shoal.sim import planted_sessions as sessions
from shoal.sim import planted_shards as shards
from shoal.sim.world import Machines


@dataclass(frozen=True)
class Plant:
    """A fault in words, the invariant that must catch it, and the machines that have it.

    seed: where to begin to look. It showed the fault when the scenarios were drawn as they were then.
    """

    fault: str
    invariant: str
    machines: Machines
    seed: int = 0


PLANTS = (
    Plant("a shard has no duplicate check", "Ordered", Machines(shard=shards.AppliesTwice)),
    Plant("a shard applies commits out of order", "Ordered", Machines(shard=shards.AppliesOutOfOrder)),
    Plant("a shard ignores fences", "Fenced", Machines(shard=shards.IgnoresFences)),
    Plant("a shard ignores epochs", "Fenced", Machines(shard=shards.IgnoresEpochs)),
    Plant("a shard frees too early", "Memory", Machines(shard=shards.FreesTooEarly)),
    Plant("a shard never frees", "Memory", Machines(shard=shards.NeverFrees)),
    Plant("a shard applies what was foreseen", "Atomic", Machines(shard=shards.TrustsForesight)),
    Plant("a shard uses the sum of another clock", "Ordered", Machines(shard=shards.CombinesAhead)),
    Plant("a shard serves any version", "Ordered", Machines(shard=shards.ServesAnyVersion)),
    Plant("a shard acknowledges what is not staged", "Atomic", Machines(shard=shards.AcknowledgesUnstaged)),
    Plant("a shard says that a contribution is complete too soon", "Atomic", Machines(shard=shards.CompletesTooSoon)),
    Plant(
        "an offer is taken for a contribution that is ready", "Quorum", Machines(coordinator=coordinators.TakesOffers)
    ),
    Plant("a contribution is committed before it is staged", "Atomic", Machines(session=sessions.ReadyTooSoon)),
    Plant(
        "a worker goes on at mixed versions",
        "Ordered",
        Machines(session=lambda limits: Session(limits, arrival=sessions.MixesVersions())),
    ),
    Plant("a worker computes on parameters that change", "Still", Machines(session=sessions.ReadsInPlace)),
    Plant("a worker claims a contribution to be whole that is not", "Atomic", Machines(session=sessions.ClaimsWhole)),
    Plant("a worker asks only once", "Progress", Machines(session=sessions.AsksOnce)),
    Plant("the staleness bound is wrong", "Bounded", Machines(coordinator=coordinators.LooseBound)),
    Plant("the quorum is counted wrong", "Quorum", Machines(coordinator=coordinators.SmallQuorum)),
    Plant("a repeated Ready is committed again", "Exactly once", Machines(coordinator=coordinators.CommitsTwice)),
    Plant("the word of the dead counts", "Fenced", Machines(coordinator=coordinators.TrustsTheDead)),
    Plant("a shard keeps what an older coordinator left", "Atomic", Machines(shard=shards.KeepsOldEntries)),
    Plant("a shard does not tell factors to a new coordinator", "Progress", Machines(shard=shards.ForgetsFactors)),
    Plant("a shard forgets which samples are accounted for", "Accounted", Machines(shard=shards.ForgetsItsAccounts)),
    Plant(
        "a worker trusts the word of a coordinator that fell",
        "Exactly once",
        Machines(session=sessions.TrustsTheFallen),
    ),
    Plant(
        "a new coordinator does not wait for the workers", "Progress", Machines(coordinator=coordinators.TakesOverAlone)
    ),
    Plant("a new coordinator drops half-spread entries", "Atomic", Machines(coordinator=coordinators.DropsWhatFewHave)),
    Plant("a worker waits for a silent coordinator", "Progress", Machines(session=sessions.WaitsForEver)),
    Plant("a server waits for a silent coordinator", "Progress", Machines(shard=shards.ServesForEver)),
    Plant("a worker that was stopped blames the coordinator", "Progress", Machines(session=sessions.BlamesOthers)),
    Plant(
        "a coordinator that was stopped blames the servers",
        "Progress",
        Machines(coordinator=coordinators.BuriesTheLiving),
    ),
    Plant("a lost release is not repeated", "Progress", Machines(coordinator=coordinators.ForgetsToRelease)),
    Plant("a lease is granted twice", "Accounted", samples.with_ledger(samples.GrantsTwice)),
    Plant("a lease is lost", "Accounted", samples.with_ledger(samples.LosesSamples)),
    Plant("a dead worker's samples are not leased again", "Accounted", samples.with_ledger(samples.BuriesLeases)),
    Plant(
        "samples are dealt in order of arrival",
        "Deterministic",
        Machines(coordinator=lambda job, **facts: Coordinator(job, dispatch=samples.DealsAsAsked(), **facts)),
    ),
    Plant("a backup says that it holds a sum too soon", "Replicated", replicas.with_replica(replicas.HoldsTooSoon)),
    Plant("a backup takes a part of a sum for all of it", "Ordered", replicas.with_replica(replicas.TakesPartForAll)),
    Plant("a backup lets any sum land", "Ordered", Machines(shard=replicas.LetsAllIn)),
    Plant("a primary sends one sum for another", "Ordered", replicas.with_replica(replicas.SendsAnotherSum)),
    Plant("a primary combines too soon", "Ordered", replicas.with_replica(replicas.CombinesTooSoon)),
    Plant(
        "an update is committed when one replica holds it", "Replicated", replicas.with_part(replicas.ContentWithOne)
    ),
    Plant("a proposal begins before the last one is applied", "Ordered", replicas.with_part(replicas.ProposesTooSoon)),
    Plant("a proposal outlives its contributor", "Progress", Machines(coordinator=replicas.ProposesForTheDead)),
    Plant("a proposal outlives a server", "Progress", replicas.with_part(replicas.WaitsForTheLost)),
    Plant(
        "an update is committed that is not wanted any more",
        "Quorum",
        Machines(coordinator=replicas.CommitsWhatItProposed),
    ),
    Plant("a new server takes in blocks of any version", "Ordered", replicas.with_replica(replicas.TakesAnyVersion)),
    Plant("a new server is told of the log once", "Progress", replicas.with_replica(replicas.TellsOnce)),
    Plant("a new server is left out of a proposal", "Replicated", replicas.with_part(replicas.LeavesOutTheNew)),
    Plant("a server leads that is not whole", "Ordered", replicas.with_replica(replicas.WholeTooSoon)),
    Plant("a shard is given up with its primary", "Progress", replicas.with_part(replicas.GivesUp)),
    Plant("a new coordinator follows an old view", "Progress", replicas.with_part(replicas.FollowsTheOldest)),
    Plant("nobody is reminded of a placement", "Progress", replicas.with_part(replicas.NeverReminds)),
    Plant("a worker does not push again to a new primary", "Progress", Machines(session=sessions.PushesOnce)),
    Plant("a worker stays with a server that is gone", "Progress", Machines(session=sessions.StaysWithTheOld)),
    Plant("a worker takes parameters that it cannot see", "Ordered", Machines(session=sessions.TakesWhatCannotBeSeen)),
)
