"""`shoal run`: a script on workers, servers and a coordinator, all on this machine."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from shoal.cli.secure import TlsCa, TlsCert, TlsKey, use_tls
from shoal.errors import ConfigurationError

Transport = Annotated[
    Literal["auto", "shm", "tcp"],
    typer.Option(
        envvar="SHOAL_TRANSPORT",
        show_envvar=False,
        help="How workers and servers exchange tensors: in memory they share, over tcp, or by itself what is best.",
    ),
]

Replicas = Annotated[int, typer.Option(help="Processes that hold each server's part, so that one of them may die.")]


def run(
    command: Annotated[list[str], typer.Argument(metavar="SCRIPT [ARGS]", help="The script and its arguments.")],
    workers: Annotated[int, typer.Option(help="Processes that run the script.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    replicas: Replicas = 1,
    registry: Annotated[
        str,
        typer.Option(
            envvar="SHOAL_REGISTRY", show_envvar=False, metavar="URL", show_default=False,
            help="Let a registry say which coordinator leads: file:///DIRECTORY, etcd://HOST,... or etcds://...",
        ),
    ] = "",
    standbys: Annotated[int, typer.Option(help="Coordinators that stand by, with --registry.")] = 1,
    group: Annotated[
        int, typer.Option(help="So many workers in a row make a torch process group, which trains as one worker.")
    ] = 1,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as in python -m.")] = False,
    max_restarts: Annotated[int, typer.Option(help="How often killed workers are started again, in all.")] = 3,
    resume: Annotated[
        str | None, typer.Option(help="Begin from this snapshot: a directory or a URL.", metavar="PATH")
    ] = None,
    transport: Transport = "auto",
    fleet: Annotated[
        str,
        typer.Option(
            envvar="SHOAL_FLEET", show_envvar=False, metavar="HOST:PORT[,...]", show_default=False,
            help="Run the servers where `shoal serve` lends places, on these machines in turn.",
        ),
    ] = "",
    host: Annotated[
        str,
        typer.Option(
            envvar="SHOAL_HOST", show_envvar=False,
            help="Where the coordinator listens; a fleet elsewhere must reach it.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The coordinator's port on HOST; 0: any free one.")] = 0,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:  # fmt: skip
    """Run a training script on this machine, with workers and servers as processes of their own.

    With --fleet the servers run on the machines of a fleet, whose token is read from SHOAL_FLEET_TOKEN.

    With --registry a coordinator that stands by takes over from one that dies, hangs or is cut off (docs/registry.md).

    Ends with the script's exit status, 128 + n for a signal n, 2 for an error of Shoal's own.
    """
    from shoal.launch.local import launch

    if command[0].startswith("-"):
        raise ConfigurationError(
            f"no such option {command[0]}; `shoal run --help` names them all, and the script's own come after SCRIPT"
        )
    arguments = ["-m", *command] if module else command
    use_tls(tls_cert, tls_key, tls_ca)
    environment = os.environ | {"SHOAL_TRANSPORT": transport, "SHOAL_FLEET": fleet}
    status = launch(
        arguments,
        workers,
        servers,
        host=host,
        port=port,
        max_restarts=max_restarts,
        replicas=replicas,
        registry=registry,
        standbys=standbys,
        group=group,
        resume=resume,
        env=environment,
    )
    raise typer.Exit(status)
