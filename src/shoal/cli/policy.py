"""`shoal policy`: which consistency policy a running job has, and another one in its place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.secure import TlsCa, TlsCert, TlsKey, use_tls
from shoal.cli.servers import Address
from shoal.cli.status import ASK_DEADLINE_MS, find_job
from shoal.errors import DeadlineError, JobError
from shoal.policy import in_words, parsed

if TYPE_CHECKING:
    from shoal.launch.jobs import JobRecord
    from shoal.vocabulary import PolicySpec
    from shoal.wire.messages import PolicySet

LOOK_SECONDS = 0.3

policy_app = typer.Typer(name="policy", no_args_is_help=True, rich_markup_mode=None)


@policy_app.callback()
def _group() -> None:
    """Show or change the consistency policy of a running job; nothing is stopped for it.

    A job started elsewhere is named by --job; its name and token are read from SHOAL_JOB and SHOAL_TOKEN.
    """


@policy_app.command("show")
def show(
    address: Address = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:
    """Print the policy in force, as `shoal policy set` takes it."""
    from shoal.runtime import visitor

    use_tls(tls_cert, tls_key, tls_ca)
    record = find_job(address)[0]
    seen = visitor.status(record.address, record.job, record.token, ASK_DEADLINE_MS, record.tls)
    if not seen.policy:
        raise JobError(f"job {seen.job} is {seen.phase} and has no policy yet: {seen.waiting}")
    typer.echo(seen.policy)


@policy_app.command("set")
def set_(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="As in a script: 'Bounded(staleness=3)'.")],
    address: Address = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for it to be in force; 0: ask, and return.")] = 60.0,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
) -> None:
    """Have POLICY take the place of the one in force: Sync(), 'Sync(quorum=0.9)', 'Bounded(staleness=3)' or
    'Async(weight="inverse", age_max=16)'.

    All servers and workers change at one version. From or to a policy with a common clock, workers finish what they
    compute under the old one first; nothing is dropped for it. It holds until it is set again or the job ends.
    """
    use_tls(tls_cert, tls_key, tls_ca)
    wanted = parsed(policy).spec  # what is no policy is said before any job is asked
    record = find_job(address)[0]
    answer = _asked(record, wanted)
    if answer.warning:
        typer.echo(f"warning: {answer.warning}", err=True)
    until = time.monotonic() + wait
    while answer.policy != wanted and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        answer = _asked(record, wanted)  # again: a new coordinator would not know of it
    if answer.policy == wanted:
        typer.echo(f"{in_words(wanted)} is in force since version {answer.since:,}")
    elif wait > 0:
        raise DeadlineError(
            f"{in_words(wanted)} is not in force after {wait:g} s, and still takes over as soon as workers have "
            f"finished what they compute: `shoal status` shows for whom the job waits"
        )
    else:
        typer.echo(f"{in_words(wanted)} takes over once workers have finished what they compute")


def _asked(record: JobRecord, wanted: PolicySpec) -> PolicySet:
    from shoal.runtime import visitor

    answer = visitor.set_policy(record.address, record.job, record.token, wanted, ASK_DEADLINE_MS, record.tls)
    if answer.error:
        raise JobError(answer.error)
    return answer
