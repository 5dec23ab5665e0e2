"""A journal: the commit log as one server knows it.

Entries that are here and not applied, entries that are applied and that another server may yet lack, and what all that
are applied amount to. A new coordinator learns the log from the journals of all servers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core.accounts import Accounts
from shoal.vocabulary import TableSpec
from shoal.wire import messages as m

Factors = tuple[tuple[str, tuple[float, ...]], ...]  # by phase of the rule


@dataclass(frozen=True)
class Kept:
    """An entry that a new coordinator may have to repeat to other servers, and its factors as far as they are known."""

    commit: m.Commit
    factors: Factors = ()


@dataclass
class Journal:
    """Of server `index`. By sequence number."""

    index: int
    accounts: Accounts = field(default_factory=Accounts)
    pending: dict[int, m.Commit] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)  # applied, and perhaps not yet by every server

    def apply(self, commit: m.Commit, factors: Factors) -> None:
        """This entry is applied, after all before it."""
        self.accounts.add(commit)
        self.kept[commit.seq] = Kept(commit, factors)
        self.kept = {seq: entry for seq, entry in self.kept.items() if seq > commit.stable}

    def follow(self, told: m.Recovered) -> None:
        """Another server says where the log is: go on from there."""
        self.accounts = Accounts.of(told)
        self.kept = {entry.seq: Kept(entry) for entry in told.entries if entry.seq <= told.version}
        self.pending = {seq: entry for seq, entry in self.pending.items() if seq > told.version}

    def tell(
        self,
        epoch: int,
        version: int,
        spec: TableSpec | None,
        current: Kept | None,
        placed: m.Placed | None,
        whole: bool,
    ) -> m.Recovered:
        """All of it, for a coordinator of `epoch`, or for a server that is new. current: the entry being applied."""
        entries = self.kept | {seq: Kept(commit) for seq, commit in self.pending.items()}
        if current is not None:
            entries[current.commit.seq] = current
        known = self.accounts
        return m.Recovered(
            self.index,
            epoch,
            version,
            known.updated,
            spec,
            tuple(entries[seq].commit for seq in sorted(entries)),
            tuple((worker, *closed) for worker, closed in sorted(known.closed.items())),
            tuple((worker, *used) for worker, used in sorted(known.used.items())),
            tuple(sorted(known.fenced.items())),
            tuple(sorted(known.released.items())),
            known.accounted,
            tuple((seq, *factor) for seq, entry in sorted(entries.items()) for factor in entry.factors),
            placed,
            whole,
            known.updates,
            tuple(sorted(known.ages.counted.items())),
            known.ages.dropped,
            known.switch,
            known.switched,
        )
