"""`shoal bench snapshot`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, histogram, milliseconds, print_table, progress, require_torch, size, table

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.bench.snapshot import Kept, SnapshotRow


def snapshot(
    params: Annotated[str, typer.Option(help="Parameters of the model.")] = "100M",
    workers: Annotated[int, typer.Option(help="Processes that train.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    transport: Annotated[str, typer.Option(help="shm or tcp.")] = "shm",
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    steps: Annotated[int, typer.Option(help="Plain steps before and after each snapshot.")] = 20,
    warmup: Annotated[int, typer.Option(help="Steps before that.")] = 3,
    snapshots: Annotated[int, typer.Option(help="Snapshots to measure, after a first one.")] = 3,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where they are written, and removed again.", metavar="DIR", show_default="temporary files'"),
    ] = None,
    report: Json = None,
) -> None:
    """What a snapshot costs the training that goes on beside it.

    Steps without and steps during a snapshot, in turn: the pause of the step that carries it, and the delay of all
    steps until it is written, as a share of its writing time.
    """
    require_torch()
    from shoal.bench.rows import check_writable, write
    from shoal.bench.shapes import parse_params
    from shoal.bench.snapshot import Plan
    from shoal.bench.snapshot import snapshot as measure

    check_writable(report)
    where = folder if folder is not None else Path(tempfile.gettempdir())
    plan = Plan(parse_params(params), workers, servers, transport, optimizer, steps, warmup, snapshots, where)
    plan.check()
    with progress(f"snapshots of {plan.params:,} parameters") as show:
        row = measure(plan, show)
    print_table(snapshot_table(row))
    if report is not None:
        write(report, [row])


def snapshot_table(row: SnapshotRow) -> Table:
    """Plain steps, and those during each snapshot, over one axis."""
    every = [*row.plain_step_seconds, *(value for kept in (row.first, *row.snapshots) for value in kept.step_seconds)]
    low, high = min(every), max(every)
    shown = table(
        f"snapshots: {row.params:,} parameters, {row.optimizer}, {row.workers} workers, {row.servers} servers, "
        f"{row.transport}, Sync()",
        ("", "written in", "pause", "delay", "share", "steps", f"{milliseconds(low)} to {milliseconds(high)}"),
    )
    plain = row.plain_step_seconds
    shown.add_row("without", "", "", "", "", str(len(plain)), histogram(plain, low, high))
    for name, kept in [("the first", row.first), *((str(n), kept) for n, kept in enumerate(row.snapshots, 1))]:
        shown.add_row(name, *_figures(kept), histogram(kept.step_seconds, low, high))
    shown.caption = (
        f"a step without a snapshot: {milliseconds(row.seconds.median)} (median); a snapshot: "
        f"{size(row.first.size_bytes)}\n"
        f"medians, the first left out: written in {row.writing_seconds:.1f} s, the step that carries it pauses "
        f"{milliseconds(row.pause_seconds)},\n"
        f"training is delayed by {milliseconds(row.delay_seconds)}: {row.delay_share:.1%} of the writing time "
        f"(to be at most {row.share_max:.0%})"
    )
    return shown


def _figures(kept: Kept) -> tuple[str, ...]:
    return (
        f"{kept.writing_seconds:.1f} s",
        milliseconds(kept.pause_seconds),
        milliseconds(kept.delay_seconds),
        f"{kept.delay_share:.1%}",
        str(len(kept.step_seconds)),
    )
