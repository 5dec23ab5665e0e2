"""Invariants of what the coordinator decides: policies (Quorum, Bounded), paces and samples (Accounted)."""

from __future__ import annotations

import math
from collections import Counter

from shoal.core.machine import UNKNOWN
from shoal.policy import from_spec, rests
from shoal.sim import facts as f
from shoal.sim.books import lease_samples, samples
from shoal.sim.trace import Trace, Unit
from shoal.vocabulary import NO_AGE_MAX, SUM, TOKENS, Contributor, Lease, PolicySpec, Switch
from shoal.wire import messages as m

Complaint = str | None

# --- Paced: nobody takes more steps in a window than the fastest ---------------------------------------


def no_faster_than_the_fastest(trace: Trace, fact: f.Fact) -> Complaint:
    """A pace is a share of the fastest worker's speed, and never 0: a window has a step at least."""
    match fact:
        case f.Said(message=m.Released(worker=worker, pace=pace)) if not 0 < pace <= 1:
            return f"worker {worker} is told that its pace is {pace:g} of the fastest worker's"
    return None


# --- Quorum: a commit holds whom the policy wants in it, and only what is ready -----------------------


def only_ready(trace: Trace, fact: f.Fact) -> Complaint:
    """A commit takes a contribution only after its worker said that every block is staged."""
    match fact:
        case f.Said(message=m.Commit(seq=seq, contributors=contributors)) if seq > len(trace.log):
            for item in contributors:
                if item.contributor not in trace.ready:
                    return f"commit {seq} takes {item.contributor}, which is not ready"
                if trace.ready[item.contributor].void:
                    return f"commit {seq} takes {item.contributor}, which is void"
    return None


def enough_workers(trace: Trace, fact: f.Fact) -> Complaint:
    """Sync settles one clock at a time, with the quorum of the members that work on it."""
    policy = trace.books.policy
    match fact:
        case f.Said(message=m.Commit(seq=seq, kind="update") as commit) if seq > len(trace.log):
            if not commit.closes:
                return f"commit {seq} settles no contribution"
            if policy.kind not in ("sync", "decoupled"):
                units = {trace.unit(worker, incarnation) for worker, incarnation, _ in commit.closes}
                return None if len(units) == 1 else f"commit {seq} settles {len(units)} contributions"
            closing, members = _closing(trace, commit)
            needed = _needed(policy, members)
            if len(closing) < needed:
                return f"commit {seq} settles workers {sorted(closing)} of {sorted(members)}, but needs {needed}"
            clocks = {clock for _, _, clock in commit.closes}
            if len(clocks) > 1 and policy.kind == "sync":
                return f"commit {seq} mixes the clocks {sorted(clocks)}"
    return None


def grace_given(trace: Trace, fact: f.Fact) -> Complaint:
    """Nobody is left behind before its grace is over, which begins when enough are ready."""
    match fact:
        case f.Said(message=m.Commit(seq=seq, kind="update") as commit, at_ms=at_ms) if seq > len(trace.log):
            policy = trace.books.policy
            closing, members = _closing(trace, commit)
            if not policy.grace or closing == members:
                return None
            ready = {(who.worker, who.incarnation, who.clock): at for who, at in trace.ready_at.items()}
            since = sorted(ready[who] for who in commit.closes)[_needed(policy, members) - 1]
            if at_ms - since < 1000 * policy.grace:
                late = sorted(members - closing)
                return f"commit {seq} leaves workers {late} behind {at_ms - since} ms after enough were ready"
    return None


def _closing(trace: Trace, commit: m.Commit) -> tuple[set[Unit], set[Unit]]:
    """The units whose contributions a commit settles, and all that policies count. Without a common clock, those that
    have come to rest bring nothing more."""
    closing = {trace.unit(worker, incarnation) for worker, incarnation, _ in commit.closes}
    common = trace.books.policy.kind == "sync"
    busy = [seat for seat in trace.busy() if common or seat.released >= seat.clock]
    return closing, closing | {trace.unit(seat.worker, seat.incarnation) for seat in busy}


def _who(contributor: Contributor) -> tuple[int, int]:
    return contributor.worker, contributor.incarnation


def _counts(trace: Trace, unit: list[m.Ready]) -> float:
    samples = sum(ready.samples for ready in unit)
    return samples**2 / max(ready.steps for ready in unit) if trace.spec.reduction == TOKENS else samples


def _needed(policy: PolicySpec, members: set[Unit]) -> int:
    if policy.kind == "decoupled":
        return min(int(policy.quorum), len(members))
    return math.ceil(policy.quorum * len(members) - 1e-9)


def fair_weights(trace: Trace, fact: f.Fact) -> Complaint:
    """Contributions are weighed by their share of the commit's samples, and by their age, in worker order."""
    match fact:
        case f.Said(message=m.Commit(seq=seq, kind="update") as commit) if seq > len(trace.log):
            readies = [trace.ready[item.contributor] for item in commit.contributors]
            unit_of = {ready.contributor: trace.unit(*_who(ready.contributor)) for ready in readies}
            mates_in = {
                unit: [ready for ready in readies if unit_of[ready.contributor] == unit] for unit in unit_of.values()
            }
            total = sum(_counts(trace, mates) for mates in mates_in.values())
            for item, ready in zip(commit.contributors, readies, strict=True):
                mates = mates_in[unit_of[item.contributor]]
                share = 1.0 if trace.spec.reduction == SUM else _counts(trace, mates) / total
                if trace.books.policy.weight == "inverse":
                    share /= 1 + max(_age(trace, mate.contributor, seq) for mate in mates)
                if not math.isclose(item.weight, share * ready.multiplier):
                    return f"commit {seq} weighs {item.contributor} by {item.weight}, not {share * ready.multiplier}"
            if list(commit.contributors) != sorted(commit.contributors, key=lambda item: item.contributor.worker):
                return f"commit {seq} combines out of worker order"
            missing = {
                who
                for who, ready in trace.ready.items()
                if (who.worker, who.incarnation, who.clock) in commit.closes
                and not any(mate.void for mate in trace.unit_ready(who))
                and sum(mate.samples for mate in trace.unit_ready(who)) > 0
                # else they were taken back before:
                and all(trace.books.leases.keys() >= set(mate.leases) for mate in trace.unit_ready(who))
            } - {item.contributor for item in commit.contributors}
            if missing:
                return f"commit {seq} settles {missing} without combining it"
    return None


# --- Regime: a policy takes over when nobody works under the one before -------------------------------


def all_at_rest(trace: Trace, fact: f.Fact) -> Complaint:
    """Where clocks or memory change their meaning, no contribution of the old policy is under way any more."""
    match fact:
        case f.Said(message=m.Commit(seq=seq, switch=Switch(policy=policy))) if seq > len(trace.log):
            before = from_spec(trace.books.policy)
            if not rests(before, from_spec(policy)):
                return None
            ready = {(who.worker, who.incarnation, who.clock) for who in trace.ready} if before.lockstep else set()
            for seat in trace.busy():
                if seat.released >= seat.clock and (seat.worker, seat.incarnation, seat.clock) not in ready:
                    return f"{policy} takes over with commit {seq} while worker {seat.worker} works on {seat.clock}"
    return None


# --- Aged: it is known how old a contribution is ------------------------------------------------------


def right_ages(trace: Trace, fact: f.Fact) -> Complaint:
    """An entry says of each contribution that it settles how many updates it is behind."""
    match fact:
        case f.Said(message=m.Commit(seq=seq) as commit) if seq > len(trace.log) and commit.kind != "seed":
            right = tuple(trace.age(*who, seq) for who in commit.closes)
            if commit.ages != right:
                return f"commit {seq} settles {commit.closes} as {commit.ages} updates old, but they are {right}"
    return None


def none_too_old(trace: Trace, fact: f.Fact) -> Complaint:
    """A contribution above the bound is not combined, and no other one is dropped for its age."""
    match fact:
        case f.Said(message=m.Commit(seq=seq) as commit) if seq > len(trace.log) and commit.kind != "seed":
            policy = trace.books.policy
            bound = math.inf if policy.age_max == NO_AGE_MAX else policy.age_max
            for item in commit.contributors:
                if _age(trace, item.contributor, seq) > bound:
                    return f"commit {seq} combines {item.contributor}, which is more than {bound} updates old"
            for who in commit.closes if commit.kind == "cut" and policy.kind != "sync" else ():
                unit = trace.unit(*who[:2])
                if max(trace.age(*other, seq) for other in commit.closes if other[:2] in unit) <= bound:
                    return f"commit {seq} drops the contribution {who}, which is not too old: the bound is {bound}"
    return None


def all_ages_kept(trace: Trace, fact: f.Fact) -> Complaint:
    """At the end the ages of all contributions are known, whoever coordinated when they came."""
    match fact:
        case f.Ended(ages=ages, dropped=dropped):
            found, late = Counter[int](), 0
            for entry in trace.log:
                combined = {item.contributor.worker for item in entry.contributors}
                found.update(age for who, age in zip(entry.closes, entry.ages, strict=False) if who[0] in combined)
                late += len(entry.closes) if entry.kind == "cut" else 0
            if (found, late) != (ages, dropped):
                return f"by the log the ages are {dict(found)}, {late} dropped; shown are {ages}, {dropped} dropped"
    return None


def _base(trace: Trace, worker: int, incarnation: int, clock: int) -> int:
    """The last update in what this worker computed on."""
    version = trace.computed_on[worker, incarnation, clock]
    return max((entry.seq for entry in trace.log[:version] if entry.contributors), default=0)


# --- Compensated: a gradient is made up for from what its worker was given ----------------------------


def right_base(trace: Trace, fact: f.Fact) -> Complaint:
    """The base is the last update in what the worker computed on, and its copy is of that. A server whose shard nobody
    else holds has it; one that has taken another's place may not."""
    match fact:
        case f.MadeUp(shard=shard, contributor=who, base=base, then=then, alone=alone):
            bases = {_base(trace, *mate, who.clock) for mate in trace.unit(who.worker, who.incarnation)}
            if len(bases) > 1:  # a rank of a group was given its part anew, and others' updates had gone on
                return None if base == UNKNOWN else f"server {shard} takes {base} for the base of {who}, one of {bases}"
            (right,) = bases
            if base not in (right, UNKNOWN) or (alone and base == UNKNOWN):
                return f"server {shard} takes {base} for the base of {who}, which was computed on {right}"
            if then is None and alone:
                return f"server {shard} does not know what {who} was computed on: version {base}"
            states = trace.right_states(right)
            if then is not None and any(states[block] != state for block, state in then.items()):
                return f"server {shard} makes up {who} from parameters that are not those of version {right}"
    return None


# --- Bounded: no worker goes on without what it must have seen ---------------------------------------


def within_bound(trace: Trace, fact: f.Fact) -> Complaint:
    """A worker starts clock c only with every contribution of busy members for clocks before c - staleness."""
    match fact:
        case f.Said(message=m.Released() as released) if trace.books.policy.kind == "bounded":
            seat = trace.books.seats.get(released.worker)
            if seat is not None and seat.incarnation == released.incarnation and seat.released >= released.next_clock:
                return None  # a repetition
            bound = released.next_clock - trace.books.policy.staleness
            for other in trace.busy():
                if other.worker != released.worker and other.clock < bound:
                    return (
                        f"worker {released.worker} goes on to clock {released.next_clock} while worker {other.worker} "
                        f"is at clock {other.clock}: the bound is {trace.books.policy.staleness}"
                    )
    return None


def fresh_enough(trace: Trace, fact: f.Fact) -> Complaint:
    """A worker never goes on with an older version than the one it was released with."""
    match fact:
        case f.Saw(worker=worker, incarnation=incarnation, version=version, clock=clock):
            least = trace.books.least.get((worker, incarnation, clock), 0)
            if version < least:
                return f"worker {worker} goes on to clock {clock} with version {version}, released with {least}"
            lacking = [seq for who, seq in trace.committed.items() if who.worker == worker and seq > version]
            mine = [who for who, seq in trace.committed.items() if seq in lacking and who.incarnation == incarnation]
            if mine:
                return f"worker {worker} goes on with version {version}, which lacks its own {mine}"
    return None


# --- Accounted: each sample of a data epoch is in exactly one commit ----------------------------------


def counted_once(trace: Trace, fact: f.Fact) -> Complaint:
    """A commit accounts for samples that are in no commit yet, and only for its contributors' own."""
    match fact:
        case f.Said(message=m.Commit(seq=seq) as commit) if seq > len(trace.log):
            closing = {(worker, incarnation) for worker, incarnation, _ in commit.closes}
            listed = list(samples(commit.samples))
            if len(set(listed)) < len(listed):
                return f"commit {seq} counts a sample twice: {commit.samples}"
            for sample in listed:
                if sample in trace.books.accounted:
                    return f"sample {sample} is in commit {seq} and in commit {trace.books.accounted[sample]}"
                holder = trace.books.holder(sample)
                if holder is None or holder[0] not in closing:
                    return f"commit {seq} counts sample {sample}, which none of its contributors holds"
    return None


def none_forgotten(trace: Trace, fact: f.Fact) -> Complaint:
    """A contribution that enters the log takes all the samples along that its worker held for it."""
    match fact:
        case f.Said(message=m.Commit(seq=seq, kind="update") as commit) if seq > len(trace.log):
            listed = set(samples(commit.samples))
            for item in commit.contributors:
                for identity in trace.ready[item.contributor].leases:
                    who, lease = trace.books.granted[identity]
                    if identity in trace.books.leases and not listed.issuperset(lease_samples(lease)):
                        return f"commit {seq} combines {item.contributor} but leaves out its samples {lease}"
                    if identity not in trace.books.leases:
                        return f"commit {seq} combines {item.contributor}, whose {lease} is not {who}'s any more"
    return None


def leased_to_one(trace: Trace, fact: f.Fact) -> Complaint:
    """A sample is leased to one living worker at a time, and not after it was committed."""
    lease: Lease | None = None
    match fact:
        case f.Said(message=m.Granted() | m.Released() as answer):
            lease = answer.lease
    if lease is None or lease.identity in trace.books.granted:
        return None
    for sample in lease_samples(lease):
        if sample in trace.books.accounted:
            return f"{lease} leases sample {sample} again, which is in commit {trace.books.accounted[sample]}"
        holder = trace.books.holder(sample)
        if holder is not None:
            return f"{lease} leases sample {sample} to another, while worker {holder[0][0]} holds it"
    return None


def over_when_done(trace: Trace, fact: f.Fact) -> Complaint:
    """A data epoch is over for a worker when all samples are committed, but those it holds for its next step
    and those of others that wait, as it did: they will be told next."""
    match fact:
        case f.Said(message=m.Granted(worker=worker, epoch=epoch, number=number, lease=None)):
            seat = trace.books.seats.get(worker)
            if seat is None or seat.asked is None or not seat.waits or seat.asked.number != number:
                return None  # a repetition
            for position in range(trace.books.sizes.get(epoch, 0)):
                if (epoch, position) in trace.books.accounted:
                    continue
                holder = trace.books.holder((epoch, position))
                other = None if holder is None else trace.books.seats.get(holder[0][0])
                if holder is not None and holder[0] in trace.unit(worker, seat.incarnation):
                    continue  # its group's, for their next step
                if holder is None or other is None or not other.waits:  # it waits itself, too
                    state = "is free" if holder is None else f"is still with worker {holder[0][0]}"
                    return f"worker {worker} was told that data epoch {epoch} is over, but sample {position} {state}"
    return None


def all_counted(trace: Trace, fact: f.Fact) -> Complaint:
    """At the end, every sample of a data epoch that is over is in a commit.

    The one exception: a worker that was told so died with its last step, when nobody was left to take over.
    """
    match fact:
        case f.Ended():
            for epoch in sorted(trace.books.over):
                for position in range(trace.books.sizes[epoch]):
                    if (epoch, position) in trace.books.accounted:
                        continue
                    holders = [
                        who for who, lease in trace.books.granted.values() if (epoch, position) in lease_samples(lease)
                    ]
                    if not holders or holders[-1] not in trace.killed:
                        return f"sample {position} of data epoch {epoch} is in no commit"
    return None


def _age(trace: Trace, who: Contributor, seq: int) -> int:
    return trace.age(who.worker, who.incarnation, who.clock, seq)
