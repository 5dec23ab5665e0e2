"""What is shown of a campaign: a live line while it goes on, and tables at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .campaign import Fault, Outcome
from .faults import KINDS
from .job import LIMITS
from .memory import Growth


class Screen:
    """A bar that counts faults, and a line for every job that has ended."""

    def __init__(self, console: Console, faults: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._bar = self._progress.add_task("faults", total=faults)
        self._done = 0

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, job: int, text: str) -> None:
        self._progress.update(self._bar, description=f"job {job}: {text}", completed=self._done)
        self._done += 1
        if not self._progress.console.is_terminal:
            self._progress.console.print(f"job {job}: {text}")

    def ended(self, outcome: Outcome) -> None:
        self._done -= 2 if outcome.setting.model == "bits" else 1  # words that were no faults
        setting = outcome.setting
        what = f"{setting.model} over {setting.transport}, {len(outcome.faults)} faults"
        figures = f"{outcome.commits:,} commits, {outcome.samples:,} samples in {outcome.seconds:.0f} s"
        verdict = f"[red]{'; '.join([outcome.wrong])}[/red]" if outcome.wrong else "all holds"
        self._progress.console.print(f"job {outcome.job}: {what}, {figures}: {verdict}")


def recovery_table(outcomes: Sequence[Outcome], seed: int) -> Table:
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for outcome in outcomes:
        for fault in outcome.faults:
            by_kind[fault.kind].append(fault)
    limits = ", ".join(f"{name}={value}" for name, value in LIMITS.items())
    table = Table(title=f"seconds after a fault (seed {seed}; {limits})", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("fault", no_wrap=True)
    for name in ("count", "next commit", "worst", "longest pause", "worst", "whole again", "worst"):
        table.add_column(name, justify="right")
    for kind in KINDS:
        faults = by_kind.get(kind.name, [])
        if faults:
            columns = ([fault.commit_s for fault in faults], [f.pause_s for f in faults], [f.whole_s for f in faults])
            cells = [f"{figure(values):.2f}" for values in columns for figure in (median, max)]
            cells[-2:] = ["", ""] if kind.aside else cells[-2:]
            table.add_row(kind.name, str(len(faults)), *cells)
    return table


def memory_table(grown: Sequence[Growth]) -> Table:
    table = Table(title="resident memory, median of all processes of a role", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("role", "first tenth", "last tenth", "looks"):
        table.add_column(name, justify="left" if name == "role" else "right")
    for item in grown:
        table.add_row(item.role, f"{item.first_mb:.1f} MB", f"{item.last_mb:.1f} MB", str(item.samples))
    return table
