"""What must always hold (DESIGN.md, section 3): one small function each, asked at every fact.

Each function sees the history before a fact and the fact, and returns what is wrong, in words, or
None. The reasoning uses only what can be seen from outside the machines: the log is what the
coordinator sent, what was pushed is what the workers computed.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from shoal.core import machine as k
from shoal.sim import facts as f
from shoal.sim import rules
from shoal.sim.feedback import Taken
from shoal.sim.symbols import FORGED, States
from shoal.sim.trace import Trace
from shoal.vocabulary import NO_AGE_MAX, Contributor
from shoal.wire import messages as m

Complaint = str | None


class Violation(Exception):
    """An invariant does not hold; `invariant` is its name in DESIGN.md."""

    def __init__(self, invariant: str, complaint: str) -> None:
        super().__init__(f"{invariant}: {complaint}")
        self.invariant = invariant
        self.complaint = complaint


def check(trace: Trace, fact: f.Fact) -> None:
    """Ask every invariant that is concerned with this kind of fact (Violation if one does not hold)."""
    for name, invariant in CONCERNED[type(fact)]:
        complaint = invariant(trace, fact)
        if complaint is not None:
            raise Violation(name, complaint)


# --- Atomic: a commit is applied on all shards with the same contributors -------------------------


def one_log(trace: Trace, fact: f.Fact) -> Complaint:
    """The coordinator never changes an entry, and skips none."""
    match fact:
        case f.Said(message=m.Commit() as commit):
            if commit.seq > len(trace.log) + 1:
                return f"the coordinator sent entry {commit.seq} before entry {len(trace.log) + 1}"
            known = trace.log[commit.seq - 1] if commit.seq <= len(trace.log) else commit
            if msgspec.structs.replace(commit, epoch=known.epoch, since=known.since) != known:
                return f"the coordinator changed entry {commit.seq}: {trace.log[commit.seq - 1]} became {commit}"
    return None


def whole_contributions(trace: Trace, fact: f.Fact) -> Complaint:
    """A shard combines exactly what the workers pushed, block by block."""
    match fact:
        case f.Performed(shard=shard, task=task, staged=staged, states=states):
            for contributor, tags in staged.items():
                pushed = trace.finished.get(contributor)
                if pushed is None:
                    return f"server {shard} uses {contributor}, which its worker has not finished"
                mine = {block: tag for block, tag in pushed.items() if block in states}
                if mine != tags:
                    return (
                        f"server {shard} has {tags} staged for {contributor} in commit {task.seq}, "
                        f"but the worker pushed {mine}"
                    )
    return None


def same_entry(trace: Trace, fact: f.Fact) -> Complaint:
    """A shard applies what the log says: the same contributors, weights and rates."""
    match fact:
        case f.Performed(shard=shard, task=task):
            if task.seq > len(trace.log):
                return f"server {shard} works on commit {task.seq}, but the log has {len(trace.log)} entries"
            entry = trace.log[task.seq - 1]
            contributors = tuple(item.contributor for item in entry.contributors)
            match task:
                case k.Seed(contributor=contributor):
                    same = (contributor,) == contributors
                case _:
                    same = (task.contributors, task.rates) == (entry.contributors, entry.rates)
            if not same:
                return f"server {shard} works on {task}, but the log says {entry}"
    return None


def whole_groups(trace: Trace, fact: f.Fact) -> Complaint:
    """A commit settles all ranks of a group at one clock, or none, and combines all or none."""
    match fact:
        case f.Said(message=m.Commit(seq=seq) as commit) if seq == len(trace.log) + 1 and commit.kind != "seed":
            combined = {(item.contributor.worker, item.contributor.incarnation) for item in commit.contributors}
            closed = {(worker, incarnation): clock for worker, incarnation, clock in commit.closes}
            for who in closed:
                unit = trace.unit(*who)
                if len({closed.get(mate) for mate in unit}) > 1:
                    return f"commit {seq} settles {commit.closes}, not all of the group {unit} alike"
                if combined.intersection(unit) and not combined.issuperset(unit):
                    return f"commit {seq} combines {sorted(combined.intersection(unit))} of the group {unit}"
    return None


# --- Exactly once: a contribution is in at most one commit ----------------------------------------


def committed_once(trace: Trace, fact: f.Fact) -> Complaint:
    match fact:
        case f.Said(message=m.Commit(seq=seq, contributors=contributors)) if seq == len(trace.log) + 1:
            for item in contributors:
                who = item.contributor
                earlier = [seq for other, seq in trace.committed.items() if _step(other) == _step(who)]
                if earlier or sum(_step(other.contributor) == _step(who) for other in contributors) > 1:
                    return f"{who} is in commit {seq} and in commit {(earlier or [seq])[0]}"
    return None


def acknowledged_kept(trace: Trace, fact: f.Fact) -> Complaint:
    """What a worker was told is committed is in the log, up to the version it was given."""
    match fact:
        case f.Saw(finished=Contributor() as who, committed=True, version=version):
            ready = trace.ready.get(who)
            unit = trace.unit_ready(who)
            if (
                ready is None
                or any(mate.void for mate in unit)
                or (sum(mate.samples for mate in unit) == 0 < who.clock)
            ):
                return None  # settled without a gradient
            seq = trace.committed.get(who)
            if seq is None or seq > version:
                return f"{who} was acknowledged with version {version}, but is in commit {seq}"
    return None


def acknowledged_dropped(trace: Trace, fact: f.Fact) -> Complaint:
    """What a worker was told is dropped is in no commit, and only a quorum or a bound on ages drops anything."""
    match fact:
        case f.Saw(finished=Contributor() as who, committed=False):
            if who in trace.committed:
                return f"{who} was told that it came too late, but is in commit {trace.committed[who]}"
            policies = trace.policies_until(who)
            if all(policy.quorum >= 1.0 and policy.age_max == NO_AGE_MAX for policy in policies):
                return f"{who} was told that it came too late, but {policies} leave nobody behind"
    return None


def saved_once(trace: Trace, fact: f.Fact) -> Complaint:
    """A snapshot is written at one version, however often it is asked for."""
    match fact:
        case f.Said(message=m.Commit(epoch=epoch, seq=seq, save=path)) if path and seq > len(trace.log):
            # A new coordinator does not know who asked: it may have the same snapshot written again, also where it
            # has taken over, and repeats, the entry of one that nobody heeded any more.
            earlier = [e.seq for e in trace.log if e.save == path and e.epoch == epoch and e.seq > e.since]
            if earlier:
                return f"snapshot {path} is written at version {seq} and at version {earlier[0]}"
    return None


# --- Ordered: the state at version v is one consistent cut of the model -----------------------------


def applied_in_order(trace: Trace, fact: f.Fact) -> Complaint:
    """A shard skips no entry that changes parameters, and applies none twice."""
    match fact:
        case f.Performed(shard=shard, task=k.Seed(seq=seq) | k.Apply(seq=seq)):
            last = trace.applied.get(shard, seq - 1)  # who came later took over at some version
            if seq <= last:
                return f"server {shard} applies commit {seq} after commit {last}"
            skipped = [entry.seq for entry in trace.log[last : seq - 1] if entry.contributors]
            if skipped:
                return f"server {shard} applies commit {seq} and skips {skipped}"
    return None


def right_state(trace: Trace, fact: f.Fact) -> Complaint:
    """After a commit each block has the state that the whole history before it gives."""
    match fact:
        case f.Performed(shard=shard, task=k.Seed(seq=seq) | k.Apply(seq=seq), states=states):
            return _differing(trace, seq, states, f"server {shard} after commit {seq}")
    return None


def published_cut(trace: Trace, fact: f.Fact) -> Complaint:
    match fact:
        case f.Published(shard=shard, effect=effect, states=states):
            where = f"server {shard}, which publishes version {effect.version} to worker {effect.worker},"
            if effect.version > len(trace.log):
                return f"{where} is ahead of the log of {len(trace.log)} entries"
            return _differing(trace, effect.version, states, where)
    return None


def seen_cut(trace: Trace, fact: f.Fact) -> Complaint:
    """A worker computes on parameters of one version, complete."""
    match fact:
        case f.Saw(
            worker=worker, incarnation=incarnation, version=version, states=states, in_place=in_place, part=part
        ):
            if in_place and incarnation <= trace.fenced.get(worker, -1):
                return None  # it is no member any more, though it was stopped and cannot know: nothing waits for it
            if states.keys() != part:
                return f"worker {worker} goes on without having received all blocks"
            return _differing(trace, version, states, f"worker {worker}, told that it has version {version},")
    return None


# --- Replicated: what is in the log, every replica can apply on its own ------------------------------


def held_everywhere(trace: Trace, fact: f.Fact) -> Complaint:
    match fact:
        case f.Entered(seq=seq, lacking=lacking) if lacking:
            return f"commit {seq} entered the log, but servers {list(lacking)} do not hold its sum"
    return None


# --- One leader: the registry's word counts, and every leader knows when it is over ---------------------


def epochs_grow(trace: Trace, fact: f.Fact) -> Complaint:
    match fact:
        case f.Led(epoch=epoch) if epoch <= trace.led:
            return f"the registry gave out epoch {epoch} after epoch {trace.led}"
    return None


def silent_when_over(trace: Trace, fact: f.Fact) -> Complaint:
    """A coordinator whose lease has run out says nothing more, whether it could hear of it or not."""
    match fact:
        case f.Spoke(epoch=epoch, now=now, until=until) if now >= until:
            return f"the coordinator of epoch {epoch} speaks at {now} ms, and its lease ended at {until} ms"
    return None


def kept_by_the_leader(trace: Trace, fact: f.Fact) -> Complaint:
    """What the registry has of the placement never goes back."""
    match fact:
        case f.Kept(epoch=epoch, view=view):
            if epoch != trace.led:
                return f"the coordinator of epoch {epoch} wrote to the registry while that of {trace.led} led"
            if (epoch, view) <= trace.kept:
                return f"the registry had view {trace.kept[1]} of epoch {trace.kept[0]}, and has view {view} of {epoch}"
    return None


# --- Fenced: who is of the past changes nothing -----------------------------------------------------


def nothing_forged(trace: Trace, fact: f.Fact) -> Complaint:
    """No shard takes the word of an older epoch (the only one to use these numbers)."""
    match fact:
        case f.Performed(shard=shard, task=k.Measure() | k.Apply() as task):
            if FORGED in task.rates or any(FORGED in values for _, values in task.factors):
                return f"server {shard} follows a coordinator of an older epoch: {task}"
    return None


def nothing_after_fence(trace: Trace, fact: f.Fact) -> Complaint:
    """No commit holds, and no release serves, an incarnation that was fenced or succeeded before."""
    match fact:
        case f.Said(message=m.Commit() as commit) if commit.seq == len(trace.log) + 1:
            named = [(item.contributor.worker, item.contributor.incarnation) for item in commit.contributors]
            for worker, incarnation in (*named, *commit.release):
                who = f"commit {commit.seq} names worker {worker} of incarnation {incarnation}"
                if incarnation <= trace.fenced.get(worker, -1):
                    return f"{who}, which was fenced"
                if incarnation < trace.welcomed.get(worker, -1):
                    return f"{who}, which was succeeded by {trace.welcomed[worker]}"
    return None


def nothing_staged_after_fence(trace: Trace, fact: f.Fact) -> Complaint:
    """A shard takes nothing more from an incarnation once it has applied its fence."""
    match fact:
        case f.Admitted(shard=shard, contributor=who, version=version):
            for entry in trace.log[:version]:
                for worker, incarnation in entry.fences:
                    if worker == who.worker and who.incarnation <= incarnation:
                        return f"server {shard} took blocks of {who} after commit {entry.seq} fenced it"
    return None


# --- Still: parameters do not change under a worker that computes on them where they lie -------------


def nothing_moves(trace: Trace, fact: f.Fact) -> Complaint:
    match fact:
        case f.Performed(shard=shard, task=task, onlookers=onlookers):
            for worker, incarnation in onlookers:
                if incarnation > trace.fenced.get(worker, -1):
                    return f"server {shard} applies commit {task.seq} while worker {worker} computes on its memory"
    return None


# --- Memory: what is staged is freed, once and not too early ----------------------------------------


def freed_late_enough(trace: Trace, fact: f.Fact) -> Complaint:
    match fact:
        case f.Performed(shard=shard, task=task, staged=staged):
            for who in staged:
                if (shard, who) in trace.freed:
                    return f"server {shard} uses {who} in commit {task.seq} after it freed it"
    return None


def all_freed(trace: Trace, fact: f.Fact) -> Complaint:
    match fact:
        case f.Ended(staged=staged):
            for shard, contributors in staged.items():
                if contributors:
                    return f"server {shard} still holds blocks of {contributors} when the job is over"
    return None


# --- Fed back: what a codec loses of a gradient is in the next one, exactly once -----------------------


def residual_fits(trace: Trace, fact: f.Fact) -> Complaint:
    """From what a worker goes on with, the codes were taken that the log took, and no others."""
    match fact:
        case f.Fed(worker=worker, taken=taken):
            return _misfed(taken, trace.taken(worker), f"the residual that worker {worker} goes on with")
    return None


def saved_residual_fits(trace: Trace, fact: f.Fact) -> Complaint:
    """So it is in a snapshot, as of its version."""
    match fact:
        case f.Saved(version=version, residuals=residuals):
            for found in residuals:
                right = trace.taken(found.worker, version)
                complaint = _misfed(
                    found.taken, right, f"worker {found.worker}'s residual in the snapshot of {version}"
                )
                if complaint:
                    return complaint
    return None


# --- helpers ----------------------------------------------------------------------------------------


def _misfed(taken: Taken, right: Taken, where: str) -> Complaint:
    if taken == right:
        return None
    return f"{where} lacks the codes of {taken[-2:]}, {len(taken)} in all; the log took {right[-2:]}, {len(right)}"


def _step(who: Contributor) -> tuple[int, int, int]:
    return who.worker, who.incarnation, who.clock


def _differing(trace: Trace, version: int, states: States, where: str) -> Complaint:
    right = trace.right_states(version)
    wrong = [block for block, state in states.items() if right[block] != state]
    if not wrong:
        return None
    matching = [number for number in range(len(trace.states)) if trace.states[number][wrong[0]] == states[wrong[0]]]
    is_of = f"is that of version {matching[0]}" if matching else "belongs to no version"
    return f"{where} has wrong parameters of version {version}: the state of block {wrong[0]} {is_of}"


Invariant = Callable[[Trace, f.Fact], Complaint]

INVARIANTS: tuple[tuple[str, Invariant, tuple[type[object], ...]], ...] = (
    ("One leader", epochs_grow, (f.Led,)),
    ("One leader", silent_when_over, (f.Spoke,)),
    ("One leader", kept_by_the_leader, (f.Kept,)),
    ("Fenced", nothing_forged, (f.Performed,)),
    ("Fenced", nothing_after_fence, (f.Said,)),
    ("Fenced", nothing_staged_after_fence, (f.Admitted,)),
    ("Ordered", applied_in_order, (f.Performed,)),
    ("Still", nothing_moves, (f.Performed,)),
    ("Memory", freed_late_enough, (f.Performed,)),
    ("Memory", all_freed, (f.Ended,)),
    ("Atomic", one_log, (f.Said,)),
    ("Atomic", whole_groups, (f.Said,)),
    ("Atomic", same_entry, (f.Performed,)),
    ("Atomic", whole_contributions, (f.Performed,)),
    ("Replicated", held_everywhere, (f.Entered,)),
    ("Quorum", rules.only_ready, (f.Said,)),
    ("Quorum", rules.enough_workers, (f.Said,)),
    ("Quorum", rules.fair_weights, (f.Said,)),
    ("Grace", rules.grace_given, (f.Said,)),
    ("Regime", rules.all_at_rest, (f.Said,)),
    ("Paced", rules.no_faster_than_the_fastest, (f.Said,)),
    ("Aged", rules.right_ages, (f.Said,)),
    ("Aged", rules.none_too_old, (f.Said,)),
    ("Aged", rules.all_ages_kept, (f.Ended,)),
    ("Compensated", rules.right_base, (f.MadeUp,)),
    ("Fed back", residual_fits, (f.Fed,)),
    ("Fed back", saved_residual_fits, (f.Saved,)),
    ("Bounded", rules.within_bound, (f.Said,)),
    ("Bounded", rules.fresh_enough, (f.Saw,)),
    ("Accounted", rules.leased_to_one, (f.Said,)),
    ("Accounted", rules.counted_once, (f.Said,)),
    ("Accounted", rules.none_forgotten, (f.Said,)),
    ("Accounted", rules.over_when_done, (f.Said,)),
    ("Accounted", rules.all_counted, (f.Ended,)),
    ("Exactly once", committed_once, (f.Said,)),
    ("Exactly once", acknowledged_kept, (f.Saw,)),
    ("Exactly once", acknowledged_dropped, (f.Saw,)),
    ("Exactly once", saved_once, (f.Said,)),
    ("Ordered", right_state, (f.Performed,)),
    ("Ordered", published_cut, (f.Published,)),
    ("Ordered", seen_cut, (f.Saw,)),
)

CONCERNED: dict[type[object], tuple[tuple[str, Invariant], ...]] = {
    kind: tuple((name, invariant) for name, invariant, kinds in INVARIANTS if kind in kinds) for kind in f.FACTS
}
