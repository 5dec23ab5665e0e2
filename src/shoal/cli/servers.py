"""`shoal servers`: change the servers of a running job, which goes on meanwhile."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Annotated

import typer

from shoal.cli.secure import TlsCa, TlsCert, TlsKey, use_tls
from shoal.cli.status import ASK_DEADLINE_MS, find_job
from shoal.errors import JobError

NUMBERS_FROM = 1_000_000  # the launcher numbers its own servers from 0

Address = Annotated[
    str | None,
    typer.Option("--job", metavar="ADDRESS", help="The coordinator's; without it, the latest job of this machine."),
]

servers_app = typer.Typer(name="servers", no_args_is_help=True, rich_markup_mode=None)


@servers_app.callback()
def _group() -> None:
    """Change the servers of a running job that has replicas (--replicas 2 or more); nothing is stopped for it.

    A job started elsewhere is named by --job; its name and token are read from SHOAL_JOB and SHOAL_TOKEN.
    """


@servers_app.command("drain")
def drain(
    what: Annotated[str, typer.Argument(metavar="SERVER|HOST", help="As `shoal status` has it: server/0; or a host.")],
    address: Address = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:
    """Have others take over what a server, or every server of a host, holds; then it ends.

    The part moves a few blocks at a time, between two updates. If no spare server runs, the job's launcher starts one.
    """
    from shoal.runtime import visitor

    use_tls(tls_cert, tls_key, tls_ca)
    record = find_job(address)[0]
    answer = visitor.drain(record.address, record.job, record.token, what, ASK_DEADLINE_MS, record.tls)
    if answer.error:
        raise JobError(answer.error)
    names = ", ".join(f"server/{server}" for server in answer.servers)
    typer.echo(f"{names} will end once others have what it holds; `shoal status --watch` shows how far that is")


@servers_app.command("add")
def add(
    address: Address = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:
    """Run another server for the job on this machine, in the foreground, until the job ends or it is drained.

    It takes a place that is free, or becomes free: of a server that dies, or is drained. SHOAL_LISTEN says where it
    listens (tcp://HOST:0 for workers on other machines), SHOAL_<LIMIT> its limits, as for `shoal run`.
    """
    use_tls(tls_cert, tls_key, tls_ca)
    record = find_job(address)[0]
    number = NUMBERS_FROM + random.SystemRandom().randrange(NUMBERS_FROM)
    tls = {} if record.tls is None else record.tls.environment()
    facts = {
        "SHOAL_JOB": record.job,
        "SHOAL_TOKEN": record.token,
        "SHOAL_COORDINATOR": record.address,
        "SHOAL_REGISTRY": record.registry,
        "SHOAL_SERVER_INDEX": str(number),
        "SHOAL_REPLICAS": "2",  # it may be one of several
    }
    typer.echo(f"server/{number} joins job {record.job}; Ctrl-C, or `shoal servers drain server/{number}`, ends it")
    ended = subprocess.run([sys.executable, "-m", "shoal.runtime.server"], env=os.environ | tls | facts, check=False)
    raise typer.Exit(ended.returncode)
