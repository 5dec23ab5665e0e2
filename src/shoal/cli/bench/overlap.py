"""`shoal bench overlap`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, histogram, milliseconds, print_table, progress, require_torch, table

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.bench.overlap import OverlapRow


def overlap(
    params: Annotated[str, typer.Option(help="Parameters of the GPT.")] = "10M",
    workers: Annotated[int, typer.Option(help="Processes that train.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    transport: Annotated[str, typer.Option(help="shm or tcp.")] = "shm",
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    peer: Annotated[str, typer.Option(help="ddp or none.")] = "ddp",
    batch: Annotated[int, typer.Option(help="Sequences in a worker's batch.")] = 4,
    context: Annotated[int, typer.Option(help="Tokens in a sequence.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps to measure of each kind.")] = 20,
    warmup: Annotated[int, typer.Option(help="Steps of each kind before that.")] = 3,
    rounds: Annotated[int, typer.Option(help="Turns that the kinds take.")] = 5,
    report: Json = None,
) -> None:
    """How much of the exchange hides behind compute, while a GPT trains.

    The same workers compute alone, exchange alone and train (both at once), in turn; DistributedDataParallel
    over gloo trains the same model beside them. The share hidden is 1 - (training - compute) / exchange.
    """
    require_torch()
    from shoal.bench.overlap import Plan
    from shoal.bench.overlap import overlap as measure
    from shoal.bench.rows import check_writable, write
    from shoal.bench.shapes import parse_params

    check_writable(report)
    plan = Plan(
        parse_params(params), workers, servers, transport, optimizer, peer, batch, context, steps, warmup, rounds
    )
    plan.check()
    with progress(f"overlap in a GPT of {plan.params:,} parameters") as show:
        row = measure(plan, show)
    print_table(overlap_table(row))
    if report is not None:
        write(report, [row])


def overlap_table(row: OverlapRow) -> Table:
    """The halves, the whole, and the peer over one axis."""
    lines = [
        ("compute alone", row.compute_seconds, row.compute_step_seconds),
        ("exchange alone", row.exchange_seconds, row.exchange_step_seconds),
        (f"both: shoal, {row.transport}", row.seconds, row.step_seconds),
    ]
    if row.peer is not None and row.peer_seconds is not None:
        lines.append((f"both: {row.peer}", row.peer_seconds, row.peer_step_seconds))
    every = [value for _, _, values in lines for value in values]
    low, high = min(every), max(every)
    shown = table(
        f"overlap: GPT of {row.params:,} parameters, {row.tokens} tokens a worker's step, {row.optimizer}, "
        f"{row.workers} workers, {row.servers} servers, Sync()",
        ("", "min", "median", "max", "steps", f"{milliseconds(low)} to {milliseconds(high)}"),
    )
    for name, seconds, values in lines:
        figures = (milliseconds(value) for value in (seconds.min, seconds.median, seconds.max))
        shown.add_row(name, *figures, str(seconds.samples), histogram(values, low, high))
    ratio = f"ratio of medians over {row.peer} {row.ratio:.2f} (below 1: shoal is quicker); " if row.ratio else ""
    worst = max(row.difference, row.peer_difference or 0.0)
    rounds = ", ".join(f"{share:.0%}" for share in row.hidden_share_by_round)
    shown.caption = (
        f"hidden behind compute: {row.hidden_share:.0%} of the exchange (round by round: {rounds})\n"
        f"{ratio}off reference {worst:.1e}"
    )
    return shown
