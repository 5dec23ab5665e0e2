"""`shoal bench scale`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, milliseconds, print_table, progress, require_torch, size, table
from shoal.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.bench.exchange import ExchangeRow
    from shoal.bench.scale import ConnectionsRow


def scale(
    params: Annotated[str, typer.Option(help="Parameters of the model.")] = "10M",
    workers: Annotated[str, typer.Option(help="Numbers of workers, with commas.")] = "1,2,4,8",
    servers: Annotated[str, typer.Option(help="Numbers of servers, with commas.")] = "1,2,4",
    transport: Annotated[str, typer.Option(help="shm, tcp or inproc.")] = "shm",
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    peer: Annotated[str, typer.Option(help="none, or peers as for the exchange.")] = "none",
    steps: Annotated[int, typer.Option(help="Steps to measure of each pair.")] = 20,
    warmup: Annotated[int, typer.Option(help="Steps of each pair before that.")] = 3,
    rounds: Annotated[int, typer.Option(help="Turns that the sides take.")] = 2,
    connections: Annotated[int, typer.Option(help="Idle connections to one server, measured last; 0: none.")] = 1000,
    report: Json = None,
) -> None:
    """The exchange with more workers and more servers, one row for each pair of numbers.

    Then what idle connections cost a server: memory, and the speed of one busy worker with and without them.
    """
    require_torch()
    from shoal.bench.peers.catalogue import chosen, left_out
    from shoal.bench.rows import check_writable, write
    from shoal.bench.scale import Plan
    from shoal.bench.scale import connections as measure_connections
    from shoal.bench.scale import scale as measure
    from shoal.bench.shapes import parse_params

    check_writable(report)
    peers, missing = chosen(peer)
    plan = Plan(
        parse_params(params), _numbers("workers", workers), _numbers("servers", servers), transport, optimizer, peers,
        steps, warmup, rounds,
    )  # fmt: skip
    plan.check()
    for absent in missing:
        typer.echo(left_out(absent), err=True)
    rows: list[ExchangeRow] = []
    try:
        with progress(f"scale: {plan.params:,} parameters") as show:
            for row in measure(plan, show):
                rows.append(row)
                if report is not None:
                    write(report, rows)
    finally:  # what is measured is shown, should a later pair fail
        if rows:
            print_table(scale_table(rows))
    if connections <= 0:
        return
    with progress("scale: idle connections") as show:
        idle = measure_connections(connections, show)
    typer.echo(connections_line(idle))
    if report is not None:
        write(report, [*rows, idle])


def scale_table(rows: Sequence[ExchangeRow]) -> Table:
    """One line a pair (and peer, if any)."""
    first = rows[0]
    shown = table(
        f"scale: {first.params:,} parameters, {first.optimizer}, {first.transport}, Sync()",
        ("workers", "servers", "min", "median", "max", "steps", "of floor", "beyond, all servers", "peer", "ratio"),
    )
    for row in rows:
        shown.add_row(
            str(row.workers),
            str(row.servers),
            *(milliseconds(value) for value in (row.seconds.min, row.seconds.median, row.seconds.max)),
            str(row.seconds.samples),
            f"{row.floor_share:.0%}",
            size(row.server_memory.beyond_bytes) if row.server_memory is not None else "",
            row.peer or "",
            f"{row.ratio:.2f}" if row.ratio is not None else "",
        )
    shown.caption = "beyond: what servers take besides parameters, optimizer state and the interpreter"
    return shown


def connections_line(row: ConnectionsRow) -> str:
    """What idle connections cost."""
    idle = row.idle
    return (
        f"{idle.connections:,} idle connections: {size(idle.bytes)} on the server, {idle.bytes_each / 1e3:.1f} kB "
        f"each; a busy worker's push takes {milliseconds(idle.seconds_among)} among them, "
        f"{milliseconds(idle.seconds_alone)} alone, ratio {idle.slowdown:.2f}"
    )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--{option} {text!r} is no list of numbers; write it like 1,2,4") from None
