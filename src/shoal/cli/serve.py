"""`shoal serve`: this machine lends places for servers to jobs, as a member of a fleet."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from shoal.cli.secure import TlsCa, TlsCert, TlsKey, use_tls


def serve(
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen, and at whose HOST the servers do. PORT 0: any.")
    ] = "127.0.0.1:7700",
    places: Annotated[
        int | None, typer.Option(help="Server processes at once, of all jobs.", show_default="one for each core")
    ] = None,
    places_per_job: Annotated[
        int | None, typer.Option(help="Server processes at once of one job.", show_default="all places")
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:
    """Lend places for servers to jobs, until Ctrl-C or SIGTERM: `shoal run --fleet HOST:PORT SCRIPT` borrows them.

    The token of the fleet is read from SHOAL_FLEET_TOKEN, and must be set where other machines reach HOST. Every
    server ends with the job that borrowed it, and with this process.
    """
    from shoal.launch.fleet import member_address
    from shoal.launch.member import serve as lend

    use_tls(tls_cert, tls_key, tls_ca)
    cores = len(os.sched_getaffinity(0))
    raise typer.Exit(lend(member_address(listen), cores if places is None else places, places_per_job))
