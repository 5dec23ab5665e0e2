"""python -m shoal.sim: simulated clusters, one a seed, with faults; exit 1 when an invariant does not hold."""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal.sim.campaign import FIGURES, Outcome, run_seed

WIDTH_MIN = 210
CHUNK = 8  # seeds that a process takes at a time
FAILURES_SHOWN_MAX = 3


app = typer.Typer(add_completion=False)


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run.")] = 1000,
    start: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes to run them on.")] = 2,
    seed: Annotated[int | None, typer.Option(min=0, help="Run this seed alone.")] = None,
    transcript: Annotated[bool, typer.Option(help="With --seed: print all that happened.")] = False,
) -> None:
    """Run the real machines of Shoal in simulated clusters with loss, duplication, reordering, delay,
    partitions, slow workers, joins, leaves and crashes, and check after every event what must always hold."""
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else WIDTH_MIN)
    if seed is not None:
        outcome = run_seed(seed, lines_max=None if transcript else 60)
        if outcome.transcript:
            console.print(outcome.transcript, markup=False)
        failed = _finish(console, [outcome])
    else:
        failed = _finish(console, _watched(console, range(start, start + seeds), jobs))
    raise typer.Exit(1 if failed else 0)


def _watched(console: Console, seeds: range, jobs: int) -> Iterator[Outcome]:
    """Outcomes as they come, under a progress bar."""
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("seeds", total=len(seeds))
        for outcome in _outcomes(seeds, jobs):
            progress.advance(bar)
            yield outcome


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from (run_seed(seed) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=CHUNK)


def _finish(console: Console, outcomes: Iterable[Outcome]) -> bool:
    """Sum up, show the first failures; True when there was any."""
    totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    failures: list[Outcome] = []
    for outcome in outcomes:
        totals[outcome.label].update(outcome.figures, seeds=1, violations=1 if outcome.invariant else 0)
        if outcome.invariant:
            failures.append(outcome)
    console.print(_summary(totals))
    for outcome in failures[:FAILURES_SHOWN_MAX]:
        console.rule(f"seed {outcome.seed}")
        console.print(outcome.transcript, markup=False)
        console.print(f"\nseed {outcome.seed} ({outcome.label}): {outcome.invariant} does not hold.", markup=False)
        console.print(outcome.complaint, markup=False)
        console.print(f"Replay: python -m shoal.sim --seed {outcome.seed} --transcript\n", markup=False)
    if len(failures) > FAILURES_SHOWN_MAX:
        rest = ", ".join(f"{item.seed} ({item.invariant})" for item in failures[FAILURES_SHOWN_MAX:])
        console.print(f"Also failed: {rest}", markup=False)
    if not failures:
        console.print("Every invariant held after every event.")
    return bool(failures)


def _summary(totals: dict[str, Counter[str]]) -> Table:
    """What happened under each policy, so that one sees that the faults were real."""
    table = Table()
    table.add_column("policy")
    columns = ("seeds", *FIGURES, "violations")
    for name in columns:
        table.add_column(name, justify="right")
    for label in sorted(totals):
        table.add_row(label, *(f"{totals[label][name]:,}" for name in columns))
    whole = sum(totals.values(), Counter())
    table.add_row("all", *(f"{whole[name]:,}" for name in columns), style="bold")
    return table


if __name__ == "__main__":
    app()
