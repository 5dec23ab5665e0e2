"""What the commands of `shoal bench` show: a live line while they run, tables at the end, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
BINS = 24

Show = Callable[[str, int, int], None]
Json = Annotated[Path | None, typer.Option("--json", help="Write the rows here as well.", metavar="FILE")]


def histogram(values: Sequence[float], low: float, high: float) -> str:
    """How many values fall in each of BINS equal parts of low..high, as one character each."""
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / ((high - low) or 1.0) * BINS))] += 1
    top = max(counts)
    return "".join(BARS[max(0, -(-count * len(BARS) // top) - 1)] if count else " " for count in counts)


def table(title: str, columns: Sequence[str]) -> Table:
    """Names on the left; figures on the right. A histogram's column is named after its axis, "1 to 2 ms"."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if not number or " to " in name else "right", no_wrap=True)
    return table


def print_table(table: RenderableType) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file or a pipe has no edge to wrap at
    console.print(table)


@contextmanager
def progress(title: str) -> Iterator[Show]:
    """A live line. It is drawn only when something happens, so that it takes nothing from what is measured."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[title]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, auto_refresh=False, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("", title=title)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, refresh=True)

        yield show


def require_torch() -> None:
    if find_spec("torch") is None:
        raise ConfigurationError("benchmarks need PyTorch, which is not installed: run `pip install 'shoal[torch]'`")


def milliseconds(seconds: float) -> str:
    """For a cell: 12.3 ms, 0.45 ms."""
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"


def size(held: float) -> str:
    """For a cell: bytes as MB."""
    return f"{held / 1e6:,.0f} MB"
