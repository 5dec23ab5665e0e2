"""`shoal bench exchange`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, histogram, milliseconds, print_table, progress, require_torch, size, table

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.bench.exchange import ExchangeRow
    from shoal.bench.rows import Seconds


def exchange(
    params: Annotated[str, typer.Option(help="Parameters of the model; several sizes as 1M,10M.")] = "10M",
    workers: Annotated[int, typer.Option(help="Processes that push gradients.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    peer: Annotated[
        str, typer.Option(help="ddp, allreduce, rpc, ray, tensorflow; several as ddp,rpc; or all, or none.")
    ] = "ddp",
    transport: Annotated[
        str, typer.Option(help="shm, tcp, or inproc (all of Shoal in one process); several as shm,tcp.")
    ] = "shm",
    steps: Annotated[int, typer.Option(help="Steps to measure of each side.")] = 50,
    warmup: Annotated[int, typer.Option(help="Steps of each side before that.")] = 5,
    rounds: Annotated[int, typer.Option(help="Turns that the sides take.")] = 5,
    report: Json = None,
) -> None:
    """Gradients in, update, parameters out, without compute: Shoal and its peers in turn.

    The peers are torch's DistributedDataParallel over gloo (ddp), one flat all-reduce over gloo (allreduce),
    torch's RPC parameter server (rpc), Ray's parameter-server pattern (ray) and TensorFlow's
    ParameterServerStrategy (tensorflow), all on loopback. One that is not installed is left out. Results of
    all sides are checked; a wrong one ends the command with an error.
    """
    require_torch()
    from shoal.bench.exchange import Plan
    from shoal.bench.exchange import exchange as measure
    from shoal.bench.peers.catalogue import chosen, left_out
    from shoal.bench.rows import check_writable, write
    from shoal.bench.shapes import parse_params

    check_writable(report)
    peers, missing = chosen(peer)
    plans = [
        Plan(parse_params(text), workers, servers, way, optimizer, peers, steps, warmup, rounds)
        for way, text in product(transport.split(","), params.split(","))
    ]
    for plan in plans:
        plan.check()
    for absent in missing:
        typer.echo(left_out(absent), err=True)
    rows: list[ExchangeRow] = []
    for plan in plans:
        mine: list[ExchangeRow] = []
        try:
            with progress(f"exchange of {plan.params:,} parameters") as show:
                for row in measure(plan, show):
                    mine.append(row)
                    if report is not None:
                        write(report, [*rows, *mine])
        finally:  # what is measured is shown, should a later peer fail
            if mine:
                print_table(exchange_table(mine))
        rows += mine


def exchange_table(rows: Sequence[ExchangeRow]) -> Table:
    """One model: what each side's steps come to, and what was checked; each row is one peer's."""
    from shoal.bench.exchange import fastest

    first = rows[0]
    shown = side_lines(
        f"exchange: {first.params:,} parameters, {first.optimizer}, {first.workers} workers, {first.servers} servers, "
        "Sync()",
        rows,
    )
    shown.caption = "\n".join(_captions(rows, fastest(rows)))
    return shown


def side_lines(title: str, rows: Sequence[ExchangeRow]) -> Table:
    """Shoal and each peer beside it, their distributions over one axis."""
    from shoal.bench.exchange import fastest

    best = fastest(rows) if len(rows) > 1 else None
    lines: list[tuple[str, Seconds, list[float], float | None, str]] = []
    for row in rows:
        beside = f", beside {row.peer}" if len(rows) > 1 else ""
        lines.append((f"shoal, {row.transport}{beside}", row.seconds, row.step_seconds, row.difference, ""))
        if row.peer is not None and row.peer_seconds is not None:
            ratio = f"{row.ratio:.2f}{' best' if row is best else ''}"
            lines.append((row.peer, row.peer_seconds, row.peer_step_seconds, row.peer_difference, ratio))
    every = [value for _, _, values, _, _ in lines for value in values]
    low, high = min(every), max(every)
    axis = f"{milliseconds(low)} to {milliseconds(high)}"
    shown = table(title, ("", "min", "median", "max", "steps", axis, "off reference", "ratio"))
    for name, seconds, values, difference, ratio in lines:
        figures = (milliseconds(value) for value in (seconds.min, seconds.median, seconds.max))
        off = "n/a" if difference is None else f"{difference:.1e}"
        shown.add_row(name, *figures, str(seconds.samples), histogram(values, low, high), off, ratio)
    return shown


def _captions(rows: Sequence[ExchangeRow], best: ExchangeRow | None) -> list[str]:
    from shoal.bench.peers.catalogue import PEERS

    last = rows[-1]
    words = [
        f"{peer.name} {peer.differs}: not compared with the reference"
        for row in rows
        if row.peer is not None and (peer := PEERS[row.peer]).differs
    ]
    if best is not None and best.ratio is not None:
        words.append(
            f"ratio of medians, shoal over peer, steps taken in turn (below 1: shoal is quicker); "
            f"over the best peer, {best.peer}: {best.ratio:.2f}"
        )
    words.append(
        f"floor {milliseconds(last.floor_seconds)} at {last.bandwidth_bytes_per_second / 1e9:.1f} GB/s touched, "
        f"{last.floor_share:.0%} of shoal's median"
    )
    if (memory := last.server_memory) is not None:
        words.append(
            f"servers: {size(memory.own_bytes)}, of it {size(memory.table_bytes)} parameters and state, "
            f"{size(memory.baseline_bytes)} before the table; beyond: {size(memory.beyond_bytes)}, {memory.share:.0%} "
            f"of parameters and state"
        )
        if memory.foreign_bytes:
            words.append(f"and mapped from workers' own memory: {size(memory.foreign_bytes)}")
    return words
