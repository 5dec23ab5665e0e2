"""Whether the resident memory of coordinator, servers and workers stays level over a long job."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from .campaign import Outcome, check, strike
from .faults import NAMED
from .job import Burnt, Job, Setting

SHARE_MAX, BYTES_MAX = 0.10, 10 << 20  # may come on top
STEP_SECONDS_MAX = 0.5
WARM_PART = 20  # of the run is over before memory is looked at: until then processes import and compile


@dataclass(frozen=True)
class Growth:
    """Of one role: the median in the first tenth of the run, and in the last."""

    role: str
    first_mb: float
    last_mb: float
    samples: int

    @property
    def grows(self) -> bool:
        return self.last_mb > self.first_mb * (1 + SHARE_MAX) + BYTES_MAX / 1e6


def growth(resident: list[tuple[float, str, int]]) -> list[Growth]:
    found = []
    for role in sorted({role for _, role, _ in resident}):
        values = [size / 1e6 for _, its, size in resident if its == role]
        tenth = max(1, len(values) // 10)
        found.append(Growth(role, median(values[:tenth]), median(values[-tenth:]), len(values)))
    return found


def run(steps: int, seed: int, folder: Path, faults: tuple[str, ...]) -> Outcome:
    """One job of so many steps, with these faults spread over it."""
    setting = Setting("bits", pause=0.0)
    outcome, chance, began = Outcome(0, setting, folder=str(folder)), Random(seed), time.monotonic()
    folder.mkdir(parents=True)
    (folder / "enough").write_text(str(steps))
    limit = 60 + steps * STEP_SECONDS_MAX
    try:
        with Job(folder, setting) as job:
            job.wait_for(lambda: job.reached(steps // WARM_PART) and job.whole(), "the job is warm", limit)
            job.resident.clear()
            for place, name in enumerate(faults, start=1):
                at = steps * place // (len(faults) + 2)
                job.wait_for(lambda at=at: job.reached(at) and job.whole(), f"clock {at}", limit)  # type: ignore[misc]
                outcome.faults.append(strike(job, 0, NAMED[name], chance))
            results = job.ended(limit)
            check(job, results)
            outcome.resident, outcome.commits = job.resident, len(job.notes.commits)
        if job.left_behind:
            raise Burnt(f"left behind: {', '.join(job.left_behind)}")
    except Burnt as error:
        outcome.wrong = str(error)
    outcome.seconds = time.monotonic() - began
    return outcome
