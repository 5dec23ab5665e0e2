"""`shoal fleet`: what the members of a fleet lend, and to which jobs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.wire.fleet import Places

ASK_DEADLINE_MS = 5_000

fleet_app = typer.Typer(name="fleet", no_args_is_help=True, rich_markup_mode=None)


@fleet_app.callback()
def _group() -> None:
    """The members of a fleet: machines where `shoal serve` lends places for servers."""


@fleet_app.command("status")
def status(
    members: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST:PORT[,HOST:PORT...]", envvar="SHOAL_FLEET", show_envvar=False,
            help="The members; without them, those in SHOAL_FLEET.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a member.")] = False,
) -> None:  # fmt: skip
    """Show the places of each member, and the jobs that have borrowed them.

    The fleet's token is read from SHOAL_FLEET_TOKEN, the files of TLS from SHOAL_TLS_CERT, SHOAL_TLS_KEY and
    SHOAL_TLS_CA; who has not got them is told nothing.
    """
    from rich.console import Console

    from shoal.errors import ConfigurationError
    from shoal.launch.fleet import MEMBERS_VARIABLE, TOKEN_VARIABLE, members_from
    from shoal.runtime import process, visitor

    addresses = members_from({MEMBERS_VARIABLE: members or ""})
    if not addresses:
        raise ConfigurationError("which member? give its HOST:PORT, or set SHOAL_FLEET")
    token = process.text_from(TOKEN_VARIABLE)
    for address in addresses:
        seen = visitor.places(address, token, ASK_DEADLINE_MS)
        if as_json:
            typer.echo(json.dumps(as_object(address, seen)))
        else:
            typer.echo(f"{address} (pid {seen.pid}): {seen.taken} of {seen.places} places are taken")
            if seen.loans:
                Console().print(table(seen))


def as_object(address: str, seen: Places) -> dict[str, object]:
    """What a member says, with its fields by name, ready for JSON."""
    loans = [
        {**asdict(loan), "processes": [{"name": name, "pid": pid} for name, pid in loan.processes]}
        for loan in seen.loans
    ]
    return {"address": address, **asdict(seen), "loans": loans}


def table(seen: Places) -> RenderableType:
    """One row a job."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("job", "launcher", "for", "servers"):
        result.add_column(name, no_wrap=name != "servers")
    for loan in seen.loans:
        servers = ", ".join(f"{name} (pid {pid})" for name, pid in loan.processes)
        result.add_row(loan.job, loan.launcher, f"{loan.held_ms / 1000:.0f} s", servers)
    return result
