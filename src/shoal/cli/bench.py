"""`shoal bench`: measures Shoal beside what people would use in its place, on this machine.

Every command shows what it does while it runs, prints a table at the end, and with --json FILE writes
the same figures as a list of rows (shoal.bench.rows).
"""

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

    from shoal.bench.exchange import ExchangeRow
    from shoal.bench.rows import Seconds
    from shoal.bench.straggler import StragglerRow

BARS = "▁▂▃▄▅▆▇█"
BINS = 24

Show = Callable[[str, int, int], None]
Json = Annotated[Path | None, typer.Option("--json", help="Write the rows here as well.", metavar="FILE")]

bench_app = typer.Typer(name="bench", no_args_is_help=True, rich_markup_mode=None)


@bench_app.command()
def exchange(
    params: Annotated[str, typer.Option(help="Parameters of the model; several sizes as 1M,10M.")] = "10M",
    workers: Annotated[int, typer.Option(help="Processes that push gradients.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    peer: Annotated[str, typer.Option(help="ddp, allreduce or none.")] = "ddp",
    transport: Annotated[str, typer.Option(help="tcp, or inproc: all of Shoal in one process.")] = "tcp",
    steps: Annotated[int, typer.Option(help="Steps to measure of each side.")] = 50,
    warmup: Annotated[int, typer.Option(help="Steps of each side before that.")] = 5,
    rounds: Annotated[int, typer.Option(help="Turns that the sides take.")] = 5,
    report: Json = None,
) -> None:
    """Gradients in, update, parameters out, without compute: Shoal and a peer in turn.

    The peers are torch's DistributedDataParallel over gloo on loopback with torch's fused optimizer (ddp),
    and one flat all-reduce with the same (allreduce). Results of both sides are checked; a wrong one
    ends the command with an error.
    """
    _require_torch()
    from shoal.bench.exchange import Plan
    from shoal.bench.exchange import exchange as measure
    from shoal.bench.rows import check_writable, write
    from shoal.bench.shapes import parse_params

    check_writable(report)
    sizes = [parse_params(size) for size in params.split(",")]
    plans = [Plan(size, workers, servers, transport, optimizer, peer, steps, warmup, rounds) for size in sizes]
    for plan in plans:
        plan.check()
    rows = []
    for plan in plans:
        with _progress(f"exchange of {plan.params:,} parameters") as show:
            rows.append(measure(plan, show))
        _print(exchange_table(rows[-1]))
    if report is not None:
        write(report, rows)


@bench_app.command()
def straggler(
    workers: Annotated[int, typer.Option(help="Worker processes; the last one is slowed.")] = 4,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    slow: Annotated[float, typer.Option(help="How many times slower the last worker is.")] = 3.0,
    batch: Annotated[int, typer.Option(help="Samples per step.")] = 32,
    sample_ms: Annotated[float, typer.Option(help="Sleep per sample, in place of compute.")] = 2.0,
    seconds: Annotated[float, typer.Option(help="Length of the measured window of each policy.")] = 6.0,
    warmup: Annotated[float, typer.Option(help="Seconds of training before it.")] = 2.0,
    alone: Annotated[float, typer.Option(help="Seconds in which each worker's own speed is measured.")] = 2.0,
    report: Json = None,
) -> None:
    """What one slow worker costs under each consistency policy.

    Compute is a sleep per sample. Speeds are compared with the sum of the workers' own, each measured
    alone and without any exchange.
    """
    _require_torch()
    from shoal.bench.rows import check_writable, write
    from shoal.bench.straggler import Plan
    from shoal.bench.straggler import straggler as measure

    check_writable(report)
    plan = Plan(workers, servers, slow, batch, sample_ms, seconds, warmup, alone)
    plan.check()
    with _progress(f"{workers} workers, one slowed {slow:g} times") as show:
        rows = measure(plan, show)
    _print(straggler_table(rows))
    if report is not None:
        write(report, rows)


@bench_app.callback()
def _group() -> None:
    """Measure Shoal beside its peers."""


# --- for people -----------------------------------------------------------------------------------


def exchange_table(row: ExchangeRow) -> RenderableType:
    """Both distributions over one axis, what they come to, and what was checked."""
    sides: list[tuple[str, Seconds, list[float], float]] = [
        (f"shoal, {row.transport}", row.seconds, row.step_seconds, row.difference)
    ]
    if row.peer is not None and row.peer_seconds is not None and row.peer_difference is not None:
        sides.append((row.peer, row.peer_seconds, row.peer_step_seconds, row.peer_difference))
    every = [value for _, _, values, _ in sides for value in values]
    low, high = min(every), max(every)
    table = _table(
        f"exchange: {row.params:,} parameters, {row.optimizer}, {row.workers} workers, {row.servers} servers, Sync()",
        ("", "min", "median", "max", "steps", f"{low * 1000:.1f} to {high * 1000:.1f} ms", "off reference"),
    )
    for name, seconds, values, difference in sides:
        figures = (f"{value * 1000:.1f} ms" for value in (seconds.min, seconds.median, seconds.max))
        table.add_row(name, *figures, str(seconds.samples), histogram(values, low, high), f"{difference:.1e}")
    ratio = f"ratio of medians {row.ratio:.2f} (below 1: shoal is quicker)\n" if row.ratio is not None else ""
    table.caption = (
        f"{ratio}floor {row.floor_seconds * 1000:.1f} ms at {row.bandwidth_bytes_per_second / 1e9:.1f} GB/s touched, "
        f"{row.floor_share:.0%} of shoal's median"
    )
    return table


def straggler_table(rows: Sequence[StragglerRow]) -> RenderableType:
    """One line a policy."""
    own, slow = rows[0].own_speeds, rows[0].slow
    table = _table(
        f"straggler: {rows[0].workers} workers, the last slowed {slow:g} times; alone they make "
        f"{' + '.join(f'{speed:.0f}' for speed in own)} = {sum(own):.0f} samples/s",
        ("policy", "samples/s", "of all", f"of the {len(own) - 1}", "stale", "max", "dropped", "90%"),
    )
    for row in rows:
        table.add_row(
            row.policy,
            f"{row.samples_per_second:.0f}",
            f"{row.share_of_all:.1%}",
            f"{row.share_of_unslowed:.1%}",
            f"{row.staleness_mean:.1f}",
            str(row.staleness_max),
            f"{row.dropped} of {row.contributions}",
            {True: "met", False: "missed", None: ""}[row.bar_met],
        )
    table.caption = (
        "of all: committed samples/s over the sum of own speeds; bar for Bounded and Async\n"
        f"of the {len(own) - 1}: over the speed of those that are not slowed; bar for the quorum"
    )
    return table


def histogram(values: Sequence[float], low: float, high: float) -> str:
    """How many values fall in each of BINS equal parts of low..high, as one character each."""
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / ((high - low) or 1.0) * BINS))] += 1
    top = max(counts)
    return "".join(BARS[max(0, -(-count * len(BARS) // top) - 1)] if count else " " for count in counts)


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _print(table: RenderableType) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file or a pipe has no edge to wrap at
    console.print(table)


@contextmanager
def _progress(title: str) -> Iterator[Show]:
    """A live line. It is drawn only when something happens, so that it takes nothing from what is measured."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[title]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, auto_refresh=False, transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("", title=title)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total, refresh=True)

        yield show


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise ConfigurationError("benchmarks need PyTorch, which is not installed: run `pip install 'shoal[torch]'`")
