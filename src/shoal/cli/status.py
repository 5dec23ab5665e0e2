"""`shoal status`: the members of a running job, how far each is, and what the job waits for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from msgspec.structs import asdict

from shoal.cli.secure import TlsCa, TlsCert, TlsKey, use_tls
from shoal.errors import JobError
from shoal.vocabulary import JOB_DEFAULT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.launch.jobs import JobRecord
    from shoal.wire.messages import MemberStatus, Status

ASK_DEADLINE_MS = 5_000
WATCH_SECONDS = 1.0
BAR_COLUMNS = 40


def status(
    address: Annotated[
        str | None, typer.Argument(help="The coordinator's address; without one, the latest job of this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second until the job ends.")] = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:
    """Show the members of a job: state, clock, version, staleness and bytes; and how old contributions were.

    A job started elsewhere is asked by its ADDRESS; its name and token are read from SHOAL_JOB and SHOAL_TOKEN, the
    files of TLS are those of --tls-cert, --tls-key and --tls-ca. Of a job that this machine started all of that is
    known. Exits with 1 when no job runs.
    """
    from rich.console import Console
    from rich.live import Live

    use_tls(tls_cert, tls_key, tls_ca)
    record, others = find_job(address)
    for other in others:
        typer.echo(f"another job runs: {other.job} at {other.address}", err=True)
    if as_json:
        for seen in _looks(record, watch):
            typer.echo(json.dumps(as_object(seen)))
    elif watch:
        with Live(auto_refresh=False) as live:
            for seen in _looks(record, watch):
                live.update(table(seen), refresh=True)
    else:
        for seen in _looks(record, watch):
            Console().print(table(seen))


def as_object(status: Status) -> dict[str, object]:
    """The status with its fields by name, ready for JSON. ages: {age: contributions}."""
    members = [asdict(member) for member in status.members]
    return {**asdict(status), "members": members, "ages": dict(status.ages)}


def table(status: Status) -> RenderableType:
    """The status for people: one row a member, what the job is at above, what it waits for below, and the ages of
    contributions, if any was old."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    policy = f", {status.policy}" if status.policy else ""
    samples = f", {status.samples_committed:,} of {status.samples:,} samples" if status.samples else ""
    epoch = f", data epoch {status.data_epoch}{samples}" if status.samples else ""
    title = f"{status.job}: {status.phase}{policy}, version {status.version:,}{epoch}"
    caption = f"waiting: {status.waiting}" if status.waiting else None
    result = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for name, justify in COLUMNS.items():
        result.add_column(name, justify=justify, no_wrap=name != "figures")
    for member in status.members:
        result.add_row(*_cells(member))
    stale = any(age for age, _ in status.ages) or status.dropped
    return Group(result, _histogram(status)) if stale else result


def _histogram(status: Status) -> RenderableType:
    """How old the contributions so far were, in classes that double: nobody reads a row for each age."""
    from rich import box
    from rich.table import Table

    classes: dict[int, int] = {}
    for age, count in status.ages:
        classes[age.bit_length()] = classes.get(age.bit_length(), 0) + count
    total = sum(classes.values()) or 1
    result = Table(
        title="contributions by age: updates that came between the parameters they were computed on and their own",
        caption=f"{status.dropped:,} more were dropped: too late, or too old" if status.dropped else None,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    result.add_column("age", justify="right")
    result.add_column("contributions", justify="right")
    result.add_column("share", no_wrap=True)
    for bits in range(max(classes, default=0) + 1):
        low, high = (1 << bits) >> 1, (1 << bits) - 1
        count = classes.get(bits, 0)
        bar = "#" * round(BAR_COLUMNS * count / total)
        ages = f"{low}" if low >= high else f"{low} to {high}"
        result.add_row(ages, f"{count:,}", f"{bar} {count / total:.0%}".strip())
    return result


# As many as fit 80 characters; the rest of what is known of a member is in --json.
COLUMNS: dict[str, Literal["left", "right"]] = {
    "member": "left", "state": "left", "clock": "right", "version": "right", "stale": "right",
    "in": "right", "out": "right", "silent": "right", "figures": "left",
}  # fmt: skip


def _cells(member: MemberStatus) -> tuple[str, ...]:
    from shoal.cli.live import in_bytes

    worker = member.name.startswith("worker/")
    return (
        member.name,
        member.state,
        f"{member.clock:,}",
        f"{member.version:,}",
        f"{member.staleness:,}" if worker else "",
        in_bytes(member.received),
        in_bytes(member.sent),
        f"{member.silent_ms / 1000:.1f} s",
        " ".join(f"{name} {value:.4g}" for name, value in member.figures.items()),
    )


def find_job(address: str | None) -> tuple[JobRecord, list[JobRecord]]:
    """The job that is meant, and the others that run on this machine."""
    from shoal.launch.jobs import JobRecord, running

    jobs = running()
    if address is None:
        if not jobs:
            typer.echo("no job is running on this machine; start one with: shoal run SCRIPT", err=True)
            raise typer.Exit(1)
        return jobs[-1], jobs[:-1]
    for record in jobs:
        if record.address == address:
            return record, []
    return JobRecord(os.environ.get("SHOAL_JOB", JOB_DEFAULT), address, os.environ.get("SHOAL_TOKEN", ""), 0), []


def _looks(record: JobRecord, watch: bool) -> Iterator[Status]:
    """One look at the job, or one every second until it has ended."""
    from shoal.runtime import visitor

    yield visitor.status(record.address, record.job, record.token, ASK_DEADLINE_MS, record.tls)
    while watch:
        time.sleep(WATCH_SECONDS)
        try:
            yield visitor.status(record.address, record.job, record.token, ASK_DEADLINE_MS, record.tls)
        except JobError:
            return  # it answered a second ago and is gone now: it has ended
