"""Servers that are wrong in one way each."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.shard import Shard
from shoal.core.staging import Staging
from shoal.sim.world import Machines
from shoal.vocabulary import Contributor, Weighted
from shoal.wire import messages as m


class AppliesTwice(Shard):
    """No duplicate check: a commit that comes again is applied again."""

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        if commit.seq == self.version and self.progress is None and self.running is None and commit.contributors:
            self.version -= 1
        return super()._commit(commit)


class AppliesOutOfOrder(Shard):
    """Takes whatever commit came first."""

    def _advance(self) -> list[k.Effect]:
        if self.journal.pending and self.progress is None and self.running is None:
            self.version = min(self.journal.pending) - 1
        return super()._advance()


class IgnoresFences(Shard):
    """Goes on staging for the dead."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        self.journal.accounts.fenced.clear()
        return super().step(event, now)


class IgnoresEpochs(Shard):
    """Follows whoever speaks, also a coordinator that was replaced."""

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        return super()._commit(msgspec.structs.replace(commit, epoch=self.epoch))


class FreesTooEarly(Shard):
    """Frees what a commit combines when it begins, not when it is applied."""

    def _compute(self) -> list[k.Effect]:
        assert self.progress is not None
        contributors = tuple(item.contributor for item in self.progress.commit.contributors)
        return [k.Free(contributors), *super()._compute()]


class NeverFrees(Shard):
    """Keeps what was settled."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        return [effect for effect in super().step(event, now) if not isinstance(effect, k.Free)]


class ServesAnyVersion(Shard):
    """Answers a pull of an older version with what it has now."""

    def _pull(self, pull: m.Pull) -> list[k.Effect]:
        blocks = tuple(sorted(set(pull.blocks) & set(self.blocks)))
        return [k.Publish(pull.worker, pull.incarnation, pull.version, blocks)] if blocks else []


class PublishesAhead(Shard):
    """Publishes the whole shard when a part of it is updated."""

    def _updated(self, updated: k.Updated) -> list[k.Effect]:
        return super()._updated(k.Updated(updated.seq, self.blocks))


class AcknowledgesUnstaged(Shard):
    """Says Staged for a whole tensor's worth when one block of it came (and the rest was lost)."""

    def _stage(self, stage: m.Stage) -> list[k.Effect]:
        effects = super()._stage(stage)
        return [
            k.Send(effect.to, msgspec.structs.replace(effect.message, blocks=self.blocks))
            if isinstance(effect, k.Send) and isinstance(effect.message, m.Staged)
            else effect
            for effect in effects
        ]


class TrustsForesight(Shard):
    """Applies what was foreseen in place of what was committed."""

    foreseen: tuple[Weighted, ...] = ()

    def _foresee(self, foresee: m.Foresee) -> list[k.Effect]:
        self.foreseen = foresee.contributors
        return super()._foresee(foresee)

    def _commit(self, commit: m.Commit) -> list[k.Effect]:
        if commit.kind == "update" and self.foreseen:
            commit, self.foreseen = msgspec.structs.replace(commit, contributors=self.foreseen), ()
        return super()._commit(commit)


class CombinesAhead(Shard):
    """Takes what was foreseen of one clock for the sum of the next."""

    def _run(self, task: k.Task) -> list[k.Effect]:
        if isinstance(task, k.Combine) and not task.held:
            task = k.Combine(tuple(_a_clock_later(item) for item in task.contributors))
        return super()._run(task)


def _a_clock_later(item: Weighted) -> Weighted:
    """Where no other entry comes between, it is computed on the next version."""
    who = item.contributor
    later = msgspec.structs.replace(who, clock=who.clock + 1)
    return msgspec.structs.replace(item, contributor=later, version=item.version + 1)


class CompletesTooSoon(Staging):
    """Tells the coordinator that a contribution is complete when its first block is there."""

    def completed(self, who: Contributor) -> list[k.Effect]:
        if who in self.awaited and self.staged.get(who):
            self.awaited[who] = 1
        return super().completed(who)


def with_staging(kind: type[Staging]) -> Machines:
    """Servers that stage so."""

    def shard(index: int, limits: Limits) -> Shard:
        made = Shard(index, limits)
        made.staging = kind(index)
        return made

    return Machines(shard=shard)


class KeepsOldEntries(Shard):
    """Applies what an older coordinator left, though the new one may have put something else in its place."""

    def _advance(self) -> list[k.Effect]:
        epoch, self.epoch = self.epoch, 0
        effects = super()._advance()
        self.epoch = epoch
        return effects


class ForgetsFactors(Shard):
    """Tells a new coordinator of the entries it has applied, but not with which factors."""

    def _recover(self, epoch: int) -> list[k.Effect]:
        return [
            k.Send(effect.to, msgspec.structs.replace(effect.message, factors=()))
            if isinstance(effect, k.Send) and isinstance(effect.message, m.Recovered)
            else effect
            for effect in super()._recover(epoch)
        ]


class ForgetsAges(Shard):
    """Does not tell a new coordinator which entries were updates, and how old what they combined was."""

    def _recovered(self, epoch: int) -> m.Recovered:
        return msgspec.structs.replace(super()._recovered(epoch), updates=(), ages=(), dropped=0)


class ForgetsItsAccounts(Shard):
    """Tells a new coordinator nothing of the samples that are accounted for."""

    def _recover(self, epoch: int) -> list[k.Effect]:
        self.journal.accounts.spans.clear()
        return super()._recover(epoch)


class ServesForEver(Shard):
    """Does not mind a coordinator that says nothing."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.registration.silence.since = None
        return super()._tick(now)


class TakesTheNewestBase(Shard):
    """Takes what is newest for what a worker computed on."""

    def _compensation(self, contributors: tuple[Weighted, ...]) -> k.Compensation | None:
        found = super()._compensation(contributors)
        return None if found is None else replace(found, base=found.present)


class ForgetsWhatWasGiven(Shard):
    """Keeps only the parameters that the last update left."""

    def _compensation(self, contributors: tuple[Weighted, ...]) -> k.Compensation | None:
        found = super()._compensation(contributors)
        return None if found is None else replace(found, needed=(found.present,))
