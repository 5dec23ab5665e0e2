"""What two jobs on one fleet cost each other: the speed of each alone, and of both at once.

The fleet is real (`shoal serve`, one process a member), and so are the jobs (`shoal run --fleet`): each has a
worker, a coordinator, and a server on every member in turn. The gradients are made beforehand, so that a step
is nearly all exchange and update, which is what servers do. Both jobs are there all the time; one that has no
turn waits and uses no processor. Everybody shares this machine's cores: each job should keep at least half of the
speed that it has alone. It keeps more where alone it leaves cores idle.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.bench.control import Conductor
from shoal.bench.fleet import Fleet
from shoal.bench.orders import Answer, Tenant, Window
from shoal.bench.rows import Row, Seconds
from shoal.errors import ConfigurationError

JOBS = ("job one", "job two")
OPTIMIZER = "adamw"
READY_SECONDS = 180.0
SLACK_SECONDS = 60.0  # for a step that was under way to end
BAR = 0.9  # of half of the speed alone

Show = Callable[[str, int, int], None]  # what is under way, turns done, turns in all


@dataclass(frozen=True)
class Plan:
    """What to measure. members: of the fleet; servers: of each job; seconds: of each turn."""

    params: int = 1_000_000
    members: int = 2
    servers: int = 2
    seconds: float = 3.0
    rounds: int = 3

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name in ("members", "servers", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.seconds <= 0:
            raise ConfigurationError(f"--seconds {self.seconds:g} must be above 0")


class SharingRow(Row, frozen=True, kw_only=True):
    """One job. seconds: of its steps while the other trains too. Speeds are steps per second.

    of_half: its speed beside the other over half of its speed alone; bar_met: whether that is BAR or more.
    """

    job: str
    members: int
    alone: float
    together: float
    of_half: float
    bar_met: bool


def sharing(plan: Plan, show: Show) -> list[SharingRow]:
    """A row for each of two jobs. Raises JobError, StartupError or DeadlineError when a process fails."""
    plan.check()
    turns = [(name,) for name in JOBS] + [JOBS]
    alone: dict[str, list[float]] = {name: [] for name in JOBS}
    together: dict[str, list[float]] = {name: [] for name in JOBS}
    total = 1 + plan.rounds * len(turns)
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder,
        Fleet("bench-fleet", 1, plan.servers) as processes,
        Conductor(Path(folder, "control"), processes.check, processes.why) as conductor,
    ):
        show("starting processes", 0, total)
        _start(plan, processes, str(Path(folder, "control")))
        conductor.gather(JOBS, READY_SECONDS)
        _turn(JOBS, plan.seconds / 2, conductor)  # caches are filled, and kernels compiled
        for number in range(plan.rounds * len(turns)):
            names = turns[number % len(turns)]
            show(" and ".join(names), 1 + number, total)
            found = alone if len(names) == 1 else together
            for name, answer in _turn(names, plan.seconds, conductor).items():
                found[name] += answer.seconds
        show("done", total, total)
    return [_row(plan, name, alone[name], together[name]) for name in JOBS]


def _start(plan: Plan, processes: Fleet, control: str) -> None:
    shoal = ("-m", "shoal.cli.main")
    token = secrets.token_urlsafe()
    names = [f"member {number}" for number in range(plan.members)]
    places = 2 * -(-plan.servers // plan.members)
    for name in names:
        serve = ("serve", "--listen", "127.0.0.1:0", "--places", str(places))
        processes.start(name, (*shoal, *serve), SHOAL_FLEET_TOKEN=token)
    facts = {"SHOAL_FLEET_TOKEN": token, "SHOAL_FLEET": ",".join(processes.ready(name) for name in names)}
    run = ("run", "--workers", "1", "--servers", str(plan.servers), "-m", "shoal.bench.sharing_worker")
    for name in JOBS:
        tenant = msgspec.json.encode(Tenant(name=name, params=plan.params, optimizer=OPTIMIZER, control=control))
        processes.start(name, (*shoal, *run, tenant.decode()), **facts, SHOAL_JOB=name, OMP_NUM_THREADS=1)


def _turn(names: Sequence[str], seconds: float, conductor: Conductor) -> dict[str, Answer]:
    return conductor.ask(dict.fromkeys(names, Window(seconds)), Answer, seconds + SLACK_SECONDS, "its turn")


def _row(plan: Plan, name: str, alone: Sequence[float], together: Sequence[float]) -> SharingRow:
    speeds = [len(steps) / sum(steps) for steps in (alone, together)]
    of_half = speeds[1] / (speeds[0] / len(JOBS))
    return SharingRow(
        bench="fleet",
        params=plan.params,
        workers=1,
        servers=plan.servers,
        transport="shm",
        policy="Sync()",
        optimizer=OPTIMIZER,
        peer=None,
        seconds=Seconds.of(together),
        ratio=None,
        floor_share=None,
        job=name,
        members=plan.members,
        alone=speeds[0],
        together=speeds[1],
        of_half=of_half,
        bar_met=of_half >= BAR,
    )
