"""`shoal bench replication`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, histogram, milliseconds, print_table, progress, require_torch, size, table

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.bench.replication import ReplicationRow


def replication(
    params: Annotated[str, typer.Option(help="Parameters of the model.")] = "100M",
    workers: Annotated[int, typer.Option(help="Processes that push gradients.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters, where there are no replicas.")] = 1,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    transport: Annotated[str, typer.Option(help="shm or tcp.")] = "shm",
    steps: Annotated[int, typer.Option(help="Steps to measure of each side.")] = 20,
    warmup: Annotated[int, typer.Option(help="Steps of each side before that.")] = 3,
    rounds: Annotated[int, typer.Option(help="Turns that the sides take.")] = 5,
    report: Json = None,
) -> None:
    """What a second replica of each server adds to an exchange: a job with and one without, in turn.

    Beside them, in the same run, one more pass of the rule over as many parameters: what the replica does on its
    own, which on one machine takes the same cores. Both jobs must come to the same bits; else the command ends with
    an error.
    """
    require_torch()
    from shoal.bench.replication import Plan
    from shoal.bench.replication import replication as measure
    from shoal.bench.rows import check_writable, write
    from shoal.bench.shapes import parse_params

    check_writable(report)
    plan = Plan(parse_params(params), workers, servers, transport, optimizer, steps, warmup, rounds)
    plan.check()
    with progress(f"replication of {plan.params:,} parameters") as show:
        row = measure(plan, show)
    print_table(replication_table(row))
    if report is not None:
        write(report, [row])


def replication_table(row: ReplicationRow) -> Table:
    """What was timed, over one axis; below it what replication adds."""
    lines = (
        ("exchange without replicas", row.plain, row.plain_step_seconds, row.plain_server_bytes),
        (f"exchange with {row.replicas} replicas", row.seconds, row.step_seconds, row.server_bytes),
        ("pass of the rule", row.one_pass, row.one_pass_seconds, 0),
    )
    every = [value for _, _, values, _ in lines for value in values]
    low, high = min(every), max(every)
    axis = f"{milliseconds(low)} to {milliseconds(high)}"
    shown = table(
        f"replication: {row.params:,} parameters, {row.optimizer}, {row.workers} workers, {row.servers} servers, "
        f"{row.transport}, {row.policy}",
        ("", "min", "median", "max", "samples", axis, "memory of servers"),
    )
    for name, seconds, values, held in lines:
        figures = (milliseconds(value) for value in (seconds.min, seconds.median, seconds.max))
        memory = size(held) if held else ""
        shown.add_row(name, *figures, str(seconds.samples), histogram(values, low, high), memory)
    shown.caption = (
        f"replication adds {milliseconds(row.added_seconds)} to the median, {row.added_passes:.2f} passes of the rule "
        f"({'met' if row.bar_met else 'missed'}: at most {row.bar:g})\n"
        f"both jobs hold the same bits after {row.steps_checked} steps, {row.difference:.1e} off the reference"
    )
    return shown
