"""python -m tests.fire: real jobs with real faults; exit 1 when something that is promised does not hold."""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .campaign import Outcome, burn, planned
from .memory import growth
from .show import Screen, memory_table, recovery_table

app = typer.Typer(add_completion=False)
MEMORY_FAULTS = ("SIGKILL backup", "SIGKILL primary", "SIGKILL coordinator")


@app.command()
def main(
    faults: Annotated[int, typer.Option(min=1, help="How many, over all jobs.")] = 200,
    per_job: Annotated[int, typer.Option(min=1, help="Faults in one job.")] = 25,
    seed: Annotated[int, typer.Option(min=-1, help="What decides all of it; -1: another one each time.")] = -1,
    job: Annotated[int, typer.Option(min=-1, help="Run the job of this number alone.")] = -1,
    only: Annotated[list[str] | None, typer.Option(help="Only this kind of fault; may be given again.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Run one long job, and see whether memory stays level.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a real GPT on 3 servers with 2 replicas and 3 workers while processes are killed and stopped, links
    cut and slow, disks full, and bytes flipped; check that nothing is lost, counted twice, or left behind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # whoever is told so leaves no job behind
    seed = random.SystemRandom().randrange(1 << 31) if seed < 0 else seed
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge
    folder = Path(tempfile.mkdtemp(prefix="shoal-fire-"))
    console.print(f"seed {seed}; everything that the jobs write is in {folder}")
    outcomes: list[Outcome] = []
    if steps:
        from .memory import run

        outcomes.append(run(steps, seed, folder / "memory", MEMORY_FAULTS))
    else:
        plan = [item for item in planned(seed, faults, per_job, tuple(only or ())) if job < 0 or item[0] == job]
        with Screen(console, sum(len(kinds) for _, _, kinds in plan)) as screen:
            for number, setting, kinds in plan:
                outcome = burn(number, setting, kinds, seed, folder / f"job-{number}", screen.tell)
                outcomes.append(outcome)
                screen.ended(outcome)
    grown = growth(outcomes[0].resident) if steps else []
    if as_json:
        shown = [{**asdict(outcome), "resident": []} for outcome in outcomes]
        print(json.dumps({"seed": seed, "jobs": shown, "memory": [asdict(item) for item in grown]}))
    console.print(memory_table(grown) if steps else recovery_table(outcomes, seed))
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in wrong:
        again = f"--seed {seed} --job {outcome.job} --faults {faults} --per-job {per_job}"
        console.print(f"job {outcome.job} ({outcome.setting.model}): {outcome.wrong}", style="red", markup=False)
        console.print(f"  its output: {outcome.folder}/output.txt; again: python -m tests.fire {again}", markup=False)
    for item in grown:
        if item.grows:
            console.print(f"the {item.role} grows: {item.first_mb:.1f} MB to {item.last_mb:.1f} MB", style="red")
    raise typer.Exit(1 if wrong or any(item.grows for item in grown) else 0)


if __name__ == "__main__":
    app()
