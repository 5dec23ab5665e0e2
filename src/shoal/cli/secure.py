"""The options of TLS, the same for every command that starts a job or asks one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.config import TLS_VARIABLES

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


def use_tls(certificate: Path | None, key: Path | None, authority: Path | None) -> None:
    """What was given holds for this process and those that it starts, as if SHOAL_TLS_* had said it."""
    given = zip(TLS_VARIABLES, (certificate, key, authority), strict=True)
    os.environ.update({name: str(path.absolute()) for name, path in given if path is not None})
