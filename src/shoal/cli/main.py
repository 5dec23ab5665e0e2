"""The `shoal` command. Whatever goes wrong on purpose ends in one line and exit status 2.

Commands import what they need when they run, so `shoal --help` is there at once and needs no torch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shoal.cli.bench import bench_app
from shoal.cli.fleet import fleet_app
from shoal.cli.policy import policy_app
from shoal.cli.run import run
from shoal.cli.sample import sample
from shoal.cli.serve import serve
from shoal.cli.servers import servers_app
from shoal.cli.snapshot import snapshot
from shoal.cli.status import status
from shoal.cli.train import train
from shoal.errors import ShoalError
from shoal.version import __version__

app = typer.Typer(
    name="shoal",
    help="A parameter server: servers hold the model, workers compute its gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shoal {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A parameter server: servers hold the model, workers compute its gradients."""


app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(run)
app.command()(serve)
app.command()(status)
app.add_typer(servers_app)
app.add_typer(policy_app)
app.add_typer(fleet_app)
app.command()(sample)
app.add_typer(snapshot)
app.add_typer(train)
app.add_typer(bench_app)


def main() -> None:
    """The entry point."""
    try:
        app()
    except ShoalError as error:
        print(f"shoal: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
