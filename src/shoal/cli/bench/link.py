"""`shoal bench link`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.exchange import side_lines
from shoal.cli.bench.show import Json, milliseconds, print_table, progress, require_torch, size, table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from shoal.bench.link import LinkRow
    from shoal.bench.link_training import LinkTrainingRow
    from shoal.bench.link_training import Plan as TrainingPlan


def link(
    params: Annotated[str, typer.Option(help="Parameters of the model.")] = "10M",
    workers: Annotated[int, typer.Option(help="Processes that push gradients, on one side of the link.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters, on the other.")] = 1,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    peer: Annotated[str, typer.Option(help="ddp, allreduce, rpc; several as ddp,rpc; or all, or none.")] = "ddp",
    rate: Annotated[float, typer.Option(help="Gbit/s of the link, each way.")] = 1.0,
    delay: Annotated[float, typer.Option(help="Milliseconds of the link, each way.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps to measure of each side.")] = 15,
    warmup: Annotated[int, typer.Option(help="Steps of each side before that.")] = 3,
    rounds: Annotated[int, typer.Option(help="Turns that the sides take.")] = 3,
    train: Annotated[
        bool, typer.Option(help="Train a GPT over the link, by several methods, in place of that.")
    ] = False,
    report: Json = None,
) -> None:
    """The exchange over a slow, long link: servers on one side, workers on the other.

    Makes two network namespaces and shapes the link between them, which needs root; without it, the command
    says so and succeeds. The floor is the line: the bytes that must cross over its rate.

    --train: a worker and a server on each side of it, and a GPT of --params that trains in packed gradients and
    parameters, or by local steps, beside DDP. --steps and --rounds count there, too.
    """
    require_torch()
    from shoal.bench.link import PEER_NAMES, Plan, skipped
    from shoal.bench.link import link as measure
    from shoal.bench.link_training import Plan as TrainingPlan
    from shoal.bench.namespaces import SYSCTLS, Shape, obstacle
    from shoal.bench.peers.catalogue import chosen
    from shoal.bench.rows import check_writable, write
    from shoal.bench.shapes import parse_params

    check_writable(report)
    peers, _ = chosen(peer, PEER_NAMES)
    shape = Shape(round(rate * 1e9), delay)
    plan = Plan(parse_params(params), workers, servers, optimizer, peers, steps, warmup, rounds, shape)
    plan.check()
    why = obstacle()
    if why is not None:
        typer.echo(f"link: skipped: {why}")
        if report is not None:
            write(report, [skipped(plan, why)])
        return
    typer.echo(f"set inside the two namespaces only: {', '.join(SYSCTLS)}", err=True)
    if train:
        training(TrainingPlan(parse_params(params), steps=steps, rounds=rounds, shape=shape), report)
        return
    rows: list[LinkRow] = []
    try:
        with progress(f"link: {plan.params:,} parameters") as show:
            for row in measure(plan, show):
                rows.append(row)
                if report is not None:
                    write(report, rows)
    finally:  # what is measured is shown, should a later peer fail
        if rows:
            print_table(link_table(rows))


def training(plan: TrainingPlan, report: Path | None) -> None:
    """Measure and show how fast each side trains."""
    from shoal.bench.link_training import train_over_link
    from shoal.bench.rows import write

    with progress(f"link: a GPT of {plan.params:,} parameters") as show:
        rows = list(train_over_link(plan, show))
    if report is not None:
        write(report, rows)
    print_table(training_table(plan, rows))


def training_table(plan: TrainingPlan, rows: Sequence[LinkTrainingRow]) -> Table:
    """Each side's step, beside DDP's and beside computing alone."""
    line = f"{plan.shape.bits_per_second / 1e9:g} Gbit/s, {2 * plan.shape.delay_ms:g} ms round trip"
    shown = table(
        f"link: a GPT of {plan.params:,} parameters on 2 workers, {rows[0].tokens} tokens a step of each; {line} "
        f"({rows[0].delayed_by})",
        ("", "a step", "of DDP's speed", "of compute-bound", "must"),
    )
    for row in rows:
        must = f"{row.must:g} of {'compute-bound' if row.bound else 'DDP'}" if row.must else ""
        middle = milliseconds(statistics.median(row.seconds))
        shown.add_row(row.name, middle, f"{row.of_ddp:.2f}", f"{row.of_compute:.2f}", must)
    return shown


def link_table(rows: Sequence[LinkRow]) -> Table:
    """As the exchange's, with the line for a floor."""
    last = rows[-1]
    shown = side_lines(
        f"link: {last.params:,} parameters, {last.optimizer}, {last.workers} workers, {last.servers} servers, Sync(); "
        f"{last.bits_per_second / 1e9:g} Gbit/s, {2 * last.delay_ms:g} ms round trip ({last.delayed_by})",
        rows,
    )
    shares = ", ".join(f"{row.floor_share:.0%}" for row in rows if row.floor_share is not None)
    shown.caption = (
        f"{size(last.line_bytes)} must cross in a step: {milliseconds(last.floor_seconds)} at the line rate, {shares} "
        f"of shoal's median\n"
        f"one plain connection: {last.probe_bits_per_second / 1e9:.2f} Gbit/s, "
        f"{milliseconds(last.probe_round_trip_seconds)} round trip"
    )
    return shown
