"""What the workers of a burning job write down of every commit they are told of, and what must hold of it.

A line is [seconds, pid, clock, version, checksum of the parameters, pass over the data, [samples]]; seconds are of the
machine's monotonic clock.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Notes:
    """All notes so far, read on from where the last look ended."""

    folder: Path
    commits: list[tuple[float, int]] = field(default_factory=list)  # when a worker first told of a new version
    clocks: dict[int, list[int]] = field(default_factory=dict)  # by rank
    trained: Counter[tuple[int, int]] = field(default_factory=Counter)  # (pass, sample) -> acknowledged how often
    of_version: dict[int, set[int]] = field(default_factory=dict)  # checksums that workers had
    of_clock: dict[int, set[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _read: dict[Path, int] = field(default_factory=dict)
    _lives: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)  # (rank, pid) -> its last note

    @property
    def version(self) -> int:
        """The newest that a worker was told of."""
        return self.commits[-1][1] if self.commits else 0

    @property
    def clock(self) -> int:
        """The newest that a worker is done with. (There are more versions than clocks: some change no parameter.)"""
        return max((clocks[-1] for clocks in self.clocks.values()), default=0)

    def look(self) -> int:
        """Read what is new; returns the newest version."""
        found: list[tuple[float, int]] = []
        for path in self.folder.glob("notes-*.jsonl"):
            rank = int(path.stem.partition("-")[2])
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines = file.read()
            complete = lines[: lines.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(complete)
            found += [self._take(rank, line) for line in complete.splitlines()]
        for seconds, version in sorted(found):
            if version > self.version:
                self.commits.append((seconds, version))
        return self.version

    def _take(self, rank: int, line: bytes) -> tuple[float, int]:
        seconds, pid, clock, version, checksum, data_pass, samples = json.loads(line)
        before = self._lives.get((rank, pid))
        if before is not None:
            self._count_in(*before)
            if clock <= before[0] or version < before[1]:
                went = f"(clock, version) {before[:2]} to {(clock, version)}"
                self.wrong.append(f"worker {rank} (pid {pid}) went from {went}")
        self._lives[rank, pid] = clock, version, checksum
        self.clocks.setdefault(rank, []).append(clock)
        self.trained.update((data_pass, sample) for sample in samples)
        return seconds, version

    def _count_in(self, clock: int, version: int, checksum: int) -> None:
        """The parameters of a worker that went on from there. (Who was stopped and taken for dead finds the others'
        newer ones in the memory they share, writes one more note, and is then told to end.)"""
        self.of_version.setdefault(version, set()).add(checksum)
        self.of_clock.setdefault(clock, set()).add(checksum)

    def twice(self) -> list[tuple[int, int]]:
        """(pass, sample) that were acknowledged more than once."""
        return [which for which, times in self.trained.items() if times > 1]

    def longest_pause(self, since: float) -> float:
        """Between two commits, from the last one before `since` on."""
        times = [seconds for seconds, _ in self.commits]
        first = max((index for index, seconds in enumerate(times) if seconds <= since), default=0)
        times = [since, *times[first + 1 :]]
        return max((later - earlier for earlier, later in zip(times, times[1:], strict=False)), default=0.0)
