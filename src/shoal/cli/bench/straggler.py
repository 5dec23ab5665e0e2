"""`shoal bench straggler`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, print_table, progress, require_torch, table

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.bench.straggler import StragglerRow


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
    require_torch()
    from shoal.bench.rows import check_writable, write
    from shoal.bench.straggler import Plan
    from shoal.bench.straggler import straggler as measure

    check_writable(report)
    plan = Plan(workers, servers, slow, batch, sample_ms, seconds, warmup, alone)
    plan.check()
    with progress(f"{workers} workers, one slowed {slow:g} times") as show:
        rows = measure(plan, show)
    print_table(straggler_table(rows))
    if report is not None:
        write(report, rows)


def straggler_table(rows: Sequence[StragglerRow]) -> Table:
    """One line a policy."""
    own, slow = rows[0].own_speeds, rows[0].slow
    shown = table(
        f"straggler: {rows[0].workers} workers, the last slowed {slow:g} times; alone they make "
        f"{' + '.join(f'{speed:.0f}' for speed in own)} = {sum(own):.0f} samples/s",
        ("policy", "samples/s", "of all", f"of the {len(own) - 1}", "stale", "max", "dropped", "90%"),
    )
    for row in rows:
        shown.add_row(
            row.policy,
            f"{row.samples_per_second:.0f}",
            f"{row.share_of_all:.1%}",
            f"{row.share_of_unslowed:.1%}",
            f"{row.staleness_mean:.1f}",
            str(row.staleness_max),
            f"{row.dropped} of {row.contributions}",
            {True: "met", False: "missed", None: ""}[row.bar_met],
        )
    shown.caption = (
        "of all: committed samples/s over the sum of own speeds; bar for Bounded and Async\n"
        f"of the {len(own) - 1}: over the speed of those that are not slowed; bar for the quorum"
    )
    return shown
