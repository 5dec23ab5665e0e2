"""`shoal run`: a script on workers, servers and a coordinator, all on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from shoal.config import TLS_VARIABLES
from shoal.errors import ConfigurationError

Transport = Annotated[
    Literal["auto", "shm", "tcp"],
    typer.Option(
        envvar="SHOAL_TRANSPORT",
        show_envvar=False,
        help="How workers and servers exchange tensors: in memory they share, over tcp, or by itself what is best.",
    ),
]

_FILE = "PATH"
TlsCert = Annotated[
    Path | None,
    typer.Option(
        envvar="SHOAL_TLS_CERT", show_envvar=False, metavar=_FILE,
        help="Mutual TLS on every TCP connection: the certificate of this machine.",
    ),
]  # fmt: skip
TlsKey = Annotated[
    Path | None, typer.Option(envvar="SHOAL_TLS_KEY", show_envvar=False, metavar=_FILE, help="The certificate's key.")
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        envvar="SHOAL_TLS_CA", show_envvar=False, metavar=_FILE,
        help="The authority that signed the certificates of all machines.",
    ),
]  # fmt: skip


def run(
    command: Annotated[list[str], typer.Argument(metavar="SCRIPT [ARGS]", help="The script and its arguments.")],
    workers: Annotated[int, typer.Option(help="Processes that run the script.")] = 2,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as in python -m.")] = False,
    max_restarts: Annotated[int, typer.Option(help="How often killed workers are started again, in all.")] = 3,
    resume: Annotated[
        str | None, typer.Option(help="Begin from this snapshot: a directory or a URL.", metavar="PATH")
    ] = None,
    transport: Transport = "auto",
    port: Annotated[int, typer.Option(help="The coordinator's port on 127.0.0.1; 0: any free one.")] = 0,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:
    """Run a training script on this machine, with workers and servers as processes of their own.

    Ends with the script's exit status, 128 + n for a signal n, 2 for an error of Shoal's own.
    """
    from shoal.launch.local import launch

    if command[0].startswith("-"):
        raise ConfigurationError(
            f"no such option {command[0]}; `shoal run --help` names them all, and the script's own come after SCRIPT"
        )
    arguments = ["-m", *command] if module else command
    # Into this process's own environment, too: the launcher visits the job, and tells `shoal status` how.
    os.environ.update(_given(dict(zip(TLS_VARIABLES, (tls_cert, tls_key, tls_ca), strict=True))))
    environment = os.environ | {"SHOAL_TRANSPORT": transport}
    status = launch(arguments, workers, servers, port=port, max_restarts=max_restarts, resume=resume, env=environment)
    raise typer.Exit(status)


def _given(paths: dict[str, Path | None]) -> dict[str, str]:
    """The variables whose paths were given, made absolute."""
    return {name: str(path.absolute()) for name, path in paths.items() if path is not None}
