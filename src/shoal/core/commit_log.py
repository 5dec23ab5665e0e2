"""The commit log: one total order of entries for the whole job, and who has applied them.

An entry is an update, the seed, or a cut that changes no parameter; each carries the fences that
are due. It is kept until every server has applied it. Rules that need figures over the whole model
(the norm for clipping, LAMB's trust ratios) are measured shard by shard; the log adds them up
over blocks, so the sum is the same on any number of shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.core import machine as k
from shoal.core.accounts import Accounts
from shoal.core.ages import Ages
from shoal.optim import phases
from shoal.vocabulary import Switch, TableSpec, Weighted, server_name
from shoal.wire import messages as m

RESENT_MAX = 16  # entries repeated to a silent shard at a time


@dataclass
class Entry:
    """A commit that some server has not applied yet."""

    commit: m.Commit
    missing: set[int]  # servers that have not applied it
    norms: dict[str, dict[int, m.Norms]] = field(default_factory=dict)  # phase -> shard -> partials
    factors: dict[str, m.Factors] = field(default_factory=dict)


@dataclass
class CommitLog:
    """Appends entries, counts their applications, adds up their norms."""

    epoch: int
    shards: int
    servers: list[int] = field(default_factory=list)  # that follow the log: every replica of every shard
    version: int = 0  # sequence number of the last entry
    updated: int = 0  # the last entry that changed parameters
    ages: Ages = field(default_factory=Ages)
    fences: list[tuple[int, int]] = field(default_factory=list)  # for the next entry
    fenced: dict[int, int] = field(default_factory=dict)  # by worker: its last incarnation that is shut out, or will be
    entries: dict[int, Entry] = field(default_factory=dict)  # by sequence number, oldest first
    sent_at: int = 0
    since: int = 0  # the last entry of an older epoch
    used: dict[int, tuple[int, int]] = field(default_factory=dict)  # by worker: its last gradient

    @property
    def stable(self) -> int:
        """Every server has applied the entries up to this one."""
        return min(self.entries, default=self.version + 1) - 1

    def seed(self, ready: m.Ready) -> m.Commit:
        """The next entry: this contributor's blocks are the initial parameters."""
        who = ready.contributor
        closes, fences = ((who.worker, who.incarnation, 0),), self._due_fences()
        return self._entry("seed", (Weighted(who, 1.0),), closes=closes, fences=fences)

    def update(
        self, readies: Sequence[m.Ready], weights: tuple[Weighted, ...], samples: tuple[tuple[int, int, int], ...]
    ) -> m.Commit:
        """The next entry: these contributions, combined with these weights; it accounts for these samples."""
        # The oldest member's schedule counts: a restarted worker's own may have begun anew.
        eldest = min(readies, key=lambda ready: ready.contributor.incarnation)
        closes = tuple((r.contributor.worker, r.contributor.incarnation, r.contributor.clock) for r in readies)
        ages = tuple(self.ages.of(ready.version) for ready in readies)
        return self._entry("update", weights, eldest.rates, closes, self._due_fences(), samples=samples, ages=ages)

    def drop(self, readies: Sequence[m.Ready]) -> m.Commit:
        """The next entry: these contributions are settled without their gradients."""
        closes = tuple((r.contributor.worker, r.contributor.incarnation, r.contributor.clock) for r in readies)
        ages = tuple(self.ages.of(ready.version) for ready in readies)
        return self._entry("cut", closes=closes, fences=self._due_fences(), ages=ages)

    def cut(self, save: str = "", switch: Switch | None = None) -> m.Commit:
        """The next entry: no parameter changes, but there is something to release, save, fence or switch."""
        return self._entry("cut", fences=self._due_fences(), save=save, switch=switch)

    def fence(self, worker: int, incarnation: int) -> None:
        """The next entry shuts this incarnation out."""
        self.fences.append((worker, incarnation))
        self.fenced[worker] = max(self.fenced.get(worker, -1), incarnation)

    def shuts_out(self, worker: int, incarnation: int) -> bool:
        """Whether this incarnation is fenced, or will be with the next entry."""
        return incarnation <= self.fenced.get(worker, -1)

    def append(self, commit: m.Commit, now: int) -> list[k.Effect]:
        """Add the next entry and send it to every server."""
        assert commit.seq == self.version + 1 and commit.epoch == self.epoch
        if not self.entries:
            self.sent_at = now
        self.version = commit.seq
        if commit.contributors:
            self.updated = commit.seq
        self.ages.add(commit)
        gradients = [item.contributor for item in commit.contributors if not item.contributor.seeds]
        self.used.update({who.worker: (who.incarnation, who.clock) for who in gradients})
        self.entries[commit.seq] = Entry(commit, set(self.servers))
        return [k.Send(server_name(server), commit) for server in self.servers]

    def recover(self, version: int, accounts: Accounts, entries: Sequence[Entry], now: int) -> list[k.Effect]:
        """Go on with a log that a coordinator of an older epoch began: repeat what some servers lack."""
        self.version, self.since, self.sent_at = version, version, now
        self.updated, self.ages, self.fenced = accounts.updated, accounts.ages, dict(accounts.fenced)
        self.used = {worker: (incarnation, clock) for worker, (incarnation, clock) in accounts.used.items() if clock}
        self.entries = {entry.commit.seq: entry for entry in entries}
        return [effect for server in self.servers for effect in self.repeat(server)]

    def applied(self, server: int, seq: int, now: int) -> None:
        """A server has applied this entry, and so all before it."""
        self.sent_at = now
        self._over(server, seq)

    def follow(self, server: int) -> list[k.Effect]:
        """From here on this server follows the log, too: with the entries that some other has yet to apply."""
        self.servers = sorted({*self.servers, server})
        for entry in self.entries.values():
            entry.missing.add(server)
        return self.repeat(server)

    def leave(self, server: int) -> None:
        """Nobody waits for this server any more."""
        self.servers = [other for other in self.servers if other != server]
        self._over(server, self.version)

    def _over(self, server: int, seq: int) -> None:
        for number in [number for number in self.entries if number <= seq]:
            entry = self.entries[number]
            entry.missing.discard(server)
            if not entry.missing:
                del self.entries[number]

    def norms(self, norms: m.Norms, shard: int, spec: TableSpec) -> list[k.Effect]:
        """Partials of one shard, from its primary; answers every server with the factors once all have come."""
        entry = self.entries.get(norms.seq)
        if entry is None:
            return []
        if norms.phase in entry.factors:
            return [k.Send(server_name(norms.server), entry.factors[norms.phase])]
        arrived = entry.norms.setdefault(norms.phase, {})
        arrived[shard] = norms
        if len(arrived) < self.shards:
            return []
        partials = {block: values for part in arrived.values() for block, values in part.partials}
        values = phases.reduce(spec, norms.phase, partials)
        factors = m.Factors(self.epoch, norms.seq, norms.phase, values)
        entry.factors[norms.phase] = factors
        return [k.Send(server_name(server), factors) for server in self.servers]

    def resend(self, now: int, resend_ms: int) -> list[k.Effect]:
        """What silent servers may have missed, once nothing was applied for `resend_ms`."""
        if not self.entries or now - self.sent_at < resend_ms:
            return []
        self.sent_at = now
        return [effect for server in self.servers for effect in self.repeat(server)]

    def repeat(self, server: int) -> list[k.Effect]:
        """The oldest entries this server has not applied, and the factors already known for them."""
        missing = [entry for entry in self.entries.values() if server in entry.missing][:RESENT_MAX]
        sent: list[m.Message] = [entry.commit for entry in missing]
        sent += [factors for entry in missing[:1] for factors in entry.factors.values()]
        return [k.Send(server_name(server), message) for message in sent]

    def _entry(self, kind: str, *facts: Any, **more: Any) -> m.Commit:
        more |= {"stable": self.stable, "since": self.since}
        return m.Commit(self.epoch, self.version + 1, kind, *facts, **more)

    def _due_fences(self) -> tuple[tuple[int, int], ...]:
        fences, self.fences = tuple(self.fences), []
        return fences


def usable(unit: Sequence[m.Ready]) -> bool:
    """Whether what the members of a unit (core/unit.py) are ready with has a gradient that counts."""
    return not any(ready.void for ready in unit) and sum(ready.samples for ready in unit) > 0
