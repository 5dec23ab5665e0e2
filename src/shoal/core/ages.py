"""Ages: how many updates the parameters were behind on which a contribution was computed.

The age of a contribution (in the literature its staleness, tau) counts the entries of the log that changed
parameters after the version its gradient was computed on and before the entry that settles it. It follows from the
log and that version alone: whoever coordinates finds the same, and it is written into the entry.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from shoal.wire import messages as m

AGE_MAX = 1024  # an older contribution counts as this old: so many updates are remembered


@dataclass
class Ages:
    """updates: the last entries that changed parameters, oldest first; counted: combined contributions, by age;
    dropped: those that were settled without their gradient, because they came too late or were too old."""

    updates: list[int] = field(default_factory=list)
    counted: dict[int, int] = field(default_factory=dict)
    dropped: int = 0

    def of(self, version: int) -> int:
        """The age of a contribution computed on `version`, if the next entry of the log settles it."""
        return min(len(self.updates) - bisect_right(self.updates, version), AGE_MAX)

    def add(self, commit: m.Commit) -> None:
        """One more entry is in the log."""
        combined = {item.contributor.worker for item in commit.contributors}
        for (worker, _, _), age in zip(commit.closes, commit.ages, strict=False):
            if worker in combined:
                self.counted[age] = self.counted.get(age, 0) + 1
            elif commit.kind == "cut":
                self.dropped += 1
        if commit.contributors:
            self.updates.append(commit.seq)
            if len(self.updates) > 2 * AGE_MAX:
                del self.updates[:-AGE_MAX]
