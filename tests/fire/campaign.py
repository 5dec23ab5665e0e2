"""Jobs one after the other, each with so many faults; what is checked after each of them.

One fault at a time: the next one comes when the job has committed again and every shard has its replicas, for that
is what replicas promise to survive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from .faults import KINDS, NAMED, Kind
from .job import Burnt, Job, Setting

MODELS = ("bits", "counting:sync", "counting:bounded", "counting:async")
TRANSPORTS = ("auto", "tcp")
SETTLED_COMMITS = 2  # that workers are told of: one may be under way when the fault strikes


@dataclass(frozen=True)
class Fault:
    """One that a job has survived. Seconds from the fault to the next commit that began after it, of the longest
    pause between commits, and until all replicas and workers were there again."""

    job: int
    kind: str
    hit: str
    commit_s: float
    pause_s: float
    whole_s: float


@dataclass
class Outcome:
    """Of one job. wrong: "" if all holds."""

    job: int
    setting: Setting
    faults: list[Fault] = field(default_factory=list)
    wrong: str = ""
    commits: int = 0
    samples: int = 0
    seconds: float = 0.0
    folder: str = ""
    resident: list[tuple[float, str, int]] = field(default_factory=list)


Tell = Callable[[int, str], None]  # (number of the job, what happens)


def silent(_job: int, _text: str) -> None:
    pass


def planned(
    seed: int, faults: int, per_job: int, only: tuple[str, ...] = ()
) -> Iterator[tuple[int, Setting, list[Kind]]]:
    """(number, what job, its faults): a function of these numbers alone.

    Of eight jobs in a row no two have the same model and the same transport.
    """
    for number in range(-(-faults // per_job)):
        chance = Random(f"{seed}/{number}/plan")
        row, place = divmod(number, len(MODELS))
        setting = Setting(MODELS[place], transport=TRANSPORTS[(row + place) % len(TRANSPORTS)])
        kinds = [NAMED[name] for name in only] or list(KINDS)
        if setting.model == "bits":
            kinds = [kind for kind in kinds if kind.gentle] or [kind for kind in KINDS if kind.gentle]
        chosen: list[Kind] = []
        count = min(per_job, faults - number * per_job)
        while len(chosen) < count:
            chosen += chance.sample(kinds, len(kinds))
        yield number, setting, chosen[:count]


def burn(number: int, setting: Setting, kinds: list[Kind], seed: int, folder: Path, tell: Tell = silent) -> Outcome:
    """One job with these faults. What is found wrong is in the outcome."""
    outcome, began = Outcome(number, setting, folder=str(folder)), time.monotonic()
    chance = Random(f"{seed}/{number}")
    try:
        with Job(folder, setting) as job:
            try:
                job.wait_for(lambda: job.whole() and job.notes.clock > 3, "the job runs")
                for kind in kinds:
                    tell(number, kind.name)
                    time.sleep(chance.uniform(0.1, 1.0))
                    outcome.faults.append(strike(job, number, kind, chance))
                tell(number, "ends")
                check(job, job.end())
            finally:
                outcome.commits, outcome.samples = len(job.notes.commits), sum(job.notes.trained.values())
                outcome.resident = job.resident
        if job.left_behind:
            raise Burnt(f"left behind: {', '.join(job.left_behind)}")
        if setting.model == "bits":
            tell(number, "compares the bits with a calm run's")
            compare(folder, setting)
    except Burnt as error:
        outcome.wrong = str(error)
    outcome.seconds = time.monotonic() - began
    return outcome


def strike(job: Job, number: int, kind: Kind, chance: Random) -> Fault:
    """Let it strike, and wait until all is well again."""
    job.look()
    since, settled = time.monotonic(), len(job.notes.commits) + SETTLED_COMMITS
    try:
        hit = kind.strike(job, chance)
        job.wait_for(lambda: job.told(settled), "the job commits again")
        job.wait_for(job.whole, "all replicas and workers are there again")
    except Burnt as error:
        raise Burnt(f"{kind.name}: {error}") from None
    whole = time.monotonic() - since
    commit = job.notes.commits[settled - 1][0] - since
    return Fault(number, kind.name, hit, commit, job.notes.longest_pause(since), whole)


def check(job: Job, results: list[dict[str, float]]) -> None:
    """What must hold of a job that has ended well."""
    notes = job.notes
    if notes.wrong:
        raise Burnt(notes.wrong[0])
    if not results:
        raise Burnt("no worker came to its end")
    last = results[-1]
    if last["version"] < notes.version:
        raise Burnt(f"version {notes.version} was acknowledged, and the parameters at the end are {last['version']}")
    if several := [version for version, checksums in notes.of_version.items() if len(checksums) > 1]:
        raise Burnt(f"workers had different parameters at one version: {several[:5]}")
    # After one clock of Sync, too. (There may be several versions of it: whom a coordinator that died did not tell to
    # go on, the next one lets go by an entry of its own.)
    several = [clock for clock, checksums in notes.of_clock.items() if len(checksums) > 1]
    if several and job.setting.model in ("counting:sync", "bits"):
        raise Burnt(f"workers had different parameters after one clock: {several[:5]}")
    if job.setting.model == "bits":
        clocks = {rank: len(set(seen)) for rank, seen in notes.clocks.items()}
        if len({result["digest"] for result in results}) > 1 or len(set(clocks.values())) > 1:
            raise Burnt(f"workers disagree: {results}; clocks noted by each: {clocks}")
        return
    if twice := notes.twice():
        raise Burnt(f"samples acknowledged twice, as (pass, sample): {twice[:5]}")
    if not last["least"] == last["most"] == last["passes"]:
        raise Burnt(f"after {last['passes']} passes samples were counted {last['least']:g} to {last['most']:g} times")


def compare(folder: Path, setting: Setting) -> None:
    """Whether a calm run on one server, as long as this one, ends with the same bits."""
    with Job(folder / "calm", Setting("bits", setting.workers, 1, 1, 0.0)) as calm:
        (folder / "calm" / "enough").write_text((folder / "enough").read_text())
        expected = calm.ended(600.0)[-1]
    found = [path.read_text() for path in folder.glob("result-*.json")]
    if not all(str(expected["digest"]) in text for text in found):
        raise Burnt(f"the bits differ from a calm run's after {expected['version']} commits: {found} {expected}")
