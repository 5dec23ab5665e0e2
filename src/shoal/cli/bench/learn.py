"""`shoal bench learn`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, print_table, progress, require_torch, size, table
from shoal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from shoal.bench.learn import LearnRow


def learn(
    text: Annotated[Path, typer.Option(help="UTF-8 text to learn, such as tinyshakespeare.")],
    only: Annotated[list[str] | None, typer.Option(help="Methods by name; all without it.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each, from seeds 0 on; the median counts.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of each worker.")] = 1500,
    workers: Annotated[int, typer.Option(help="Processes that learn together.")] = 4,
    recipe: Annotated[str, typer.Option(help="How AdamW is set: nanogpt, or plain, its defaults.")] = "nanogpt",
    report: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Draw loss against bytes and time (PNG).", metavar="FILE")] = None,
    link_mbits: Annotated[float, typer.Option(help="Rate of the link that the plot's time is modelled on.")] = 1000,
) -> None:
    """What sending less costs in learning: a small GPT by each method, from the same seeds.

    About two minutes a run on two cores. The bytes are those of all workers, both ways.
    """
    require_torch()
    from shoal.bench.learn import Plan
    from shoal.bench.learn import learn as measure
    from shoal.bench.learn_methods import METHODS
    from shoal.bench.learn_plot import check_drawable, draw
    from shoal.bench.rows import check_writable, write

    check_writable(report)
    check_drawable(plot)
    if link_mbits <= 0:
        raise ConfigurationError(f"--link-mbits {link_mbits:g} must be above 0")
    plan = Plan(str(text), tuple(only or METHODS), seeds, steps, workers, recipe=recipe)
    plan.check()
    rows: list[LearnRow] = []
    with progress(f"{len(plan.names)} methods, {seeds} seeds") as show:
        for row in measure(plan, show):
            rows.append(row)
            if report is not None:
                write(report, rows)
    if plot is not None:
        draw(rows, plot, link_mbits)
    print_table(learn_table(rows))


def learn_table(rows: Sequence[LearnRow]) -> Table:
    """Loss and bytes of each method, beside those of sync, where that was run, or of the first."""
    first = next((row for row in rows if row.name == "sync"), rows[0])
    shown = table(
        f"learning: median of {len(first.seeds)} seeds",
        ("", "what", "loss", f"beside {first.name}", "lowest to highest", "bytes", "fewer"),
    )
    shown.columns[1].justify, shown.columns[1].no_wrap = "left", False  # so that the figures stay whole
    for row in rows:
        losses = [run.val_loss for run in row.runs]
        shown.add_row(
            row.name,
            row.what,
            f"{row.val_loss:.3f}",
            f"{row.val_loss - first.val_loss:+.3f}",
            f"{min(losses):.3f} to {max(losses):.3f}",
            size(row.bytes),
            f"{first.bytes / row.bytes:.1f} times",
        )
        for warning in row.warnings:
            shown.caption = "\n".join(filter(None, (str(shown.caption or ""), f"{row.name} warns: {warning}")))
    return shown
