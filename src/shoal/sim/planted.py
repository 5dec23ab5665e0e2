"""Planted faults: machines that are wrong in one way each, to prove that the simulation would see it.

Each plant names the invariant that must catch it. A plant overrides as little as it can, so that
everything else goes on as in the real machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.core.coordinator import Coordinator
from shoal.core.session import Session
from shoal.sim import planted_coordinators as coordinators
from shoal.sim import planted_courses as courses
from shoal.sim import planted_groups as groups
from shoal.sim import planted_regimes as regimes
from shoal.sim import planted_registries as registries
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
    Plant("a shard has no duplicate check", "Ordered", Machines(shard=shards.AppliesTwice), seed=3),
    Plant("a shard applies commits out of order", "Ordered", Machines(shard=shards.AppliesOutOfOrder), seed=10),
    Plant("a shard ignores fences", "Fenced", Machines(shard=shards.IgnoresFences), seed=3),
    Plant("a shard ignores epochs", "Fenced", Machines(shard=shards.IgnoresEpochs), seed=3),
    Plant("a shard frees too early", "Memory", Machines(shard=shards.FreesTooEarly), seed=3),
    Plant("a shard never frees", "Memory", Machines(shard=shards.NeverFrees), seed=3),
    Plant("a shard applies what was foreseen", "Atomic", Machines(shard=shards.TrustsForesight), seed=39),
    Plant("a worker's pace is by the slowest", "Paced", Machines(coordinator=coordinators.PacesByTheSlowest)),
    Plant("a shard uses the sum of another clock", "Ordered", Machines(shard=shards.CombinesAhead), seed=88),
    Plant("a shard serves any version", "Ordered", Machines(shard=shards.ServesAnyVersion), seed=3),
    Plant("a shard publishes ahead", "Ordered", Machines(shard=shards.PublishesAhead), seed=3),
    Plant("a shard acknowledges what is not staged", "Atomic", Machines(shard=shards.AcknowledgesUnstaged), seed=66),
    Plant(
        "a shard says that a contribution is complete too soon",
        "Atomic",
        shards.with_staging(shards.CompletesTooSoon),
        seed=168,
    ),
    Plant(
        "an offer is taken for a contribution that is ready",
        "Quorum",
        Machines(coordinator=coordinators.TakesOffers),
        seed=5,
    ),
    Plant("a contribution is committed before it is staged", "Atomic", Machines(session=sessions.ReadyTooSoon), seed=3),
    Plant(
        "a worker goes on at mixed versions",
        "Ordered",
        Machines(session=lambda limits: Session(limits, arrival=sessions.MixesVersions())),
        seed=22,
    ),
    Plant("a worker computes on parameters that change", "Still", Machines(session=sessions.ReadsInPlace), seed=23),
    Plant(
        "a worker claims a contribution to be whole that is not",
        "Atomic",
        sessions.with_couriers(sessions.ClaimsWhole),
        seed=29,
    ),
    Plant("a worker asks only once", "Progress", Machines(session=sessions.AsksOnce), seed=15),
    Plant("the staleness bound is wrong", "Bounded", replicas.with_part(courses.LooseBound), seed=10),
    Plant("every entry makes a contribution older", "Aged", Machines(coordinator=coordinators.AgesByEntries)),
    Plant("a shard forgets how old contributions were", "Aged", Machines(shard=shards.ForgetsAges)),
    Plant("a contribution is taken that is too old", "Aged", replicas.with_part(courses.TakesTooOld)),
    Plant(
        "a worker that comes back is not told what the log used",
        "Fed back",
        replicas.with_part(courses.ForgetsWhatWasUsed),
    ),
    Plant(
        "a snapshot has the residual of another version",
        "Fed back",
        Machines(coordinator=coordinators.RecallsTheOneBefore),
    ),
    Plant("a worker is not told what was dropped", "Exactly once", replicas.with_part(courses.DropsQuietly)),
    Plant("nobody is given any grace", "Grace", replicas.with_part(courses.GivesNoGrace)),
    Plant("a gradient is made up from the newest", "Compensated", Machines(shard=shards.TakesTheNewestBase)),
    Plant("a shard forgets what it gave out", "Compensated", Machines(shard=shards.ForgetsWhatWasGiven)),
    Plant("a policy takes over at once", "Regime", regimes.with_regime(regimes.TakesOverAtOnce)),
    Plant("a new coordinator forgets the policy", "Aged", regimes.with_regime(regimes.ForgetsTheRegime), seed=122),
    Plant(
        "workers go on at clocks of their own", "Exactly once", regimes.with_regime(regimes.LeavesClocksApart), seed=298
    ),
    Plant("who waits for samples gets nothing new", "Still", regimes.with_regime(regimes.LeavesOutTheIdle), seed=1259),
    Plant("a shard does not hear of another policy", "Still", Machines(shard=regimes.KeepsThePolicy), seed=57),
    Plant("half a group is committed", "Atomic", Machines(coordinator=groups.CommitsHalfAGroup)),
    Plant("the quorum is counted wrong", "Quorum", replicas.with_part(courses.SmallQuorum), seed=3),
    Plant("a repeated Ready is committed again", "Exactly once", replicas.with_part(courses.CommitsTwice), seed=3),
    Plant("the word of the dead counts", "Fenced", Machines(coordinator=coordinators.TrustsTheDead), seed=1084),
    Plant("a shard keeps what an older coordinator left", "Atomic", Machines(shard=shards.KeepsOldEntries), seed=12727),
    Plant(
        "a shard does not tell factors to a new coordinator",
        "Progress",
        Machines(shard=shards.ForgetsFactors),
        seed=3,
    ),
    Plant(
        "a shard forgets which samples are accounted for",
        "Accounted",
        Machines(shard=shards.ForgetsItsAccounts),
        seed=10,
    ),
    Plant(
        "a worker trusts the word of a coordinator that fell",
        "Exactly once",
        Machines(session=sessions.TrustsTheFallen),
        seed=251,
    ),
    Plant(
        "a new coordinator does not wait for the workers",
        "Progress",
        Machines(coordinator=coordinators.TakesOverAlone),
        seed=49,
    ),
    Plant(
        "a new coordinator drops half-spread entries",
        "Atomic",
        Machines(coordinator=coordinators.DropsWhatFewHave),
        seed=22,
    ),
    Plant("a worker waits for a silent coordinator", "Progress", Machines(session=sessions.WaitsForEver), seed=234),
    Plant("a server waits for a silent coordinator", "Progress", Machines(shard=shards.ServesForEver), seed=234),
    Plant(
        "a worker that was stopped blames the coordinator", "Progress", Machines(session=sessions.BlamesOthers), seed=74
    ),
    Plant(
        "a coordinator that was stopped blames the servers",
        "Progress",
        Machines(coordinator=coordinators.BuriesTheLiving),
        seed=242,
    ),
    Plant("a lost release is not repeated", "Progress", replicas.with_part(courses.ForgetsToRelease), seed=3),
    Plant("a lease is granted twice", "Accounted", samples.with_ledger(samples.GrantsTwice), seed=10),
    Plant("a lease is lost", "Accounted", samples.with_ledger(samples.LosesSamples), seed=6),
    Plant(
        "a dead worker's samples are not leased again", "Accounted", samples.with_ledger(samples.BuriesLeases), seed=15
    ),
    Plant(
        "samples are dealt in order of arrival",
        "Deterministic",
        Machines(coordinator=lambda job, **facts: Coordinator(job, dispatch=samples.DealsAsAsked(), **facts)),
        seed=12,
    ),
    Plant(
        "a backup says that it holds a sum too soon", "Replicated", replicas.with_replica(replicas.HoldsTooSoon), seed=1
    ),
    Plant(
        "a backup takes a part of a sum for all of it",
        "Ordered",
        replicas.with_replica(replicas.TakesPartForAll),
        seed=1,
    ),
    Plant("a backup lets any sum land", "Ordered", Machines(shard=replicas.LetsAllIn), seed=68),
    Plant("a primary sends one sum for another", "Ordered", replicas.with_replica(replicas.SendsAnotherSum), seed=87),
    Plant(
        "a worker goes on while a replica reads its gradient",
        "Atomic",
        replicas.with_part(courses.LetsGoTooSoon),
        seed=44,
    ),
    Plant("a primary holds in place what is not whole", "Atomic", replicas.with_replica(replicas.HoldsPartsInPlace)),
    Plant("a primary combines too soon", "Ordered", replicas.with_replica(replicas.CombinesTooSoon), seed=24),
    Plant(
        "an update is committed when one replica holds it", "Replicated", replicas.with_part(replicas.ContentWithOne)
    ),
    Plant(
        "a proposal begins before the last one is applied",
        "Ordered",
        replicas.with_part(replicas.ProposesTooSoon),
        seed=65,
    ),
    Plant(
        "a proposal outlives its contributor", "Progress", Machines(coordinator=replicas.ProposesForTheDead), seed=123
    ),
    Plant("a proposal outlives a server", "Progress", replicas.with_part(replicas.WaitsForTheLost), seed=216),
    Plant(
        "an update is committed that is not wanted any more",
        "Quorum",
        replicas.with_part(courses.CommitsWhatItProposed),
        seed=2,
    ),
    Plant(
        "a new server takes in blocks of any version",
        "Ordered",
        replicas.with_replica(replicas.TakesAnyVersion),
        seed=491,
    ),
    Plant("a new server is told of the log once", "Progress", replicas.with_replica(replicas.TellsOnce), seed=191),
    Plant(
        "a new server is left out of a proposal", "Replicated", replicas.with_part(replicas.LeavesOutTheNew), seed=33
    ),
    Plant("a server leads that is not whole", "Ordered", replicas.with_replica(replicas.WholeTooSoon), seed=241),
    Plant("a shard is given up with its primary", "Progress", replicas.with_part(replicas.GivesUp)),
    Plant("a new coordinator follows an old view", "Progress", replicas.with_part(replicas.FollowsTheOldest), seed=487),
    Plant("nobody is reminded of a placement", "Progress", replicas.with_part(replicas.NeverReminds), seed=315),
    Plant(
        "a worker does not push again to a new primary",
        "Progress",
        sessions.with_couriers(sessions.PushesOnce),
        seed=31,
    ),
    Plant("a worker stays with a server that is gone", "Progress", sessions.with_couriers(sessions.StaysWithTheOld)),
    Plant(
        "a worker takes parameters that it cannot see",
        "Ordered",
        Machines(session=sessions.TakesWhatCannotBeSeen),
        seed=776,
    ),
    Plant("increments are added to anything", "Ordered", Machines(session=sessions.AddsToAnything)),
    Plant("a registry gives an epoch twice", "One leader", Machines(registry=registries.RepeatsEpochs), seed=10),
    Plant(
        "a registry takes what a former leader writes",
        "One leader",
        Machines(registry=registries.TakesFromAnyone),
        seed=173,
    ),
    Plant(
        "a coordinator goes on after its lease is lost", "One leader", Machines(coordinator=registries.GoesOn), seed=10
    ),
    Plant(
        "a coordinator that was stopped does not look at its lease first",
        "One leader",
        Machines(coordinator=registries.TrustsItsLease),
        seed=20,
    ),
    Plant("a standby begins the job anew", "Progress", Machines(coordinator=registries.begins_anew)),
    Plant("a shard follows two coordinators", "Atomic", Machines(shard=registries.FollowsBoth), seed=96),
    Plant("a node does not look for the next leader", "Progress", Machines(following=registries.NeverSeeks), seed=113),
)
