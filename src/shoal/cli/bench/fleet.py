"""`shoal bench fleet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.bench.show import Json, milliseconds, print_table, progress, require_torch, table

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.bench.sharing import SharingRow


def fleet(
    params: Annotated[str, typer.Option(help="Parameters of each job's model.")] = "1M",
    members: Annotated[int, typer.Option(help="Members of the fleet.")] = 2,
    servers: Annotated[int, typer.Option(help="Servers of each job.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each turn.")] = 3.0,
    rounds: Annotated[int, typer.Option(help="Turns of each kind: one job, the other, both.")] = 3,
    report: Json = None,
) -> None:
    """What two jobs on one fleet cost each other: steps per second of each alone, and of both at once.

    Both share this machine's cores, so each should keep half of its speed alone, or more.
    """
    require_torch()
    from shoal.bench.rows import check_writable, write
    from shoal.bench.shapes import parse_params
    from shoal.bench.sharing import Plan
    from shoal.bench.sharing import sharing as measure

    check_writable(report)
    plan = Plan(parse_params(params), members, servers, seconds, rounds)
    plan.check()
    with progress(f"two jobs on a fleet of {members}") as show:
        rows = measure(plan, show)
    print_table(fleet_table(rows))
    if report is not None:
        write(report, rows)


def fleet_table(rows: Sequence[SharingRow]) -> Table:
    """One line a job."""
    first = rows[0]
    shown = table(
        f"fleet: {first.members} members, two jobs of {first.params:,} parameters, {first.servers} servers each",
        ("job", "steps/s alone", "steps/s beside the other", "of half", "90% of half", "median step"),
    )
    for row in rows:
        shown.add_row(
            row.job,
            f"{row.alone:.1f}",
            f"{row.together:.1f}",
            f"{row.of_half:.2f}",
            "met" if row.bar_met else "missed",
            milliseconds(row.seconds.median),
        )
    shown.caption = "of half: the speed beside the other over half of that alone; above 1 where alone cores were idle"
    return shown
