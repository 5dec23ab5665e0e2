"""What the processes of a job read from their environment, and how they end.

A node process prints one line "SHOAL READY <address>" when it serves, the coordinator "SHOAL BEGUN"
when the job runs, and each one line "shoal: error: ..." on stderr (exit status 1; 75 where another coordinator is to
take over) when it cannot go on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import uvloop

from shoal.config import TRANSPORTS, Job, Limits, Tls
from shoal.errors import ConfigurationError, FencedError, ShoalError
from shoal.runtime.node import Node
from shoal.transport import tls as transport_tls
from shoal.transport.tcp import SCHEME, host_and_port

READY = "SHOAL READY"
BEGUN = "SHOAL BEGUN"
ESTATE = "SHOAL_ESTATE"  # the number of a worker's descriptor of memory that outlives it (launch/estate.py)
ESTATE_NAME = "shoal-estate"
LOWEST_PRIORITY = 19
DEPOSED = 75  # exit status of a coordinator in whose place another one leads, or will (EX_TEMPFAIL: try again)
FLUSH_SECONDS = 0.2  # for last words to leave before the process ends
TEXT_LENGTH_MAX = 1_000  # of a job's name and of its token


def job_from(environment: Mapping[str, str] = os.environ) -> Job:
    """The job that SHOAL_JOB, SHOAL_TOKEN, SHOAL_TLS_*, SHOAL_WORKERS and SHOAL_SERVERS describe.

    Raises ConfigurationError for what cannot be, files of TLS that cannot be used among it.
    """
    return Job(
        name=text_from("SHOAL_JOB", environment, Job.name),
        token=text_from("SHOAL_TOKEN", environment, ""),
        tls=tls_from(environment),
        workers=_whole("SHOAL_WORKERS", environment, 1),
        servers=_whole("SHOAL_SERVERS", environment, 1),
        replicas=_at_least_one("SHOAL_REPLICAS", environment),
        registry=text_from("SHOAL_REGISTRY", environment),
        threads=_at_least_one("SHOAL_SERVER_THREADS", environment),
        transport=_one_of(TRANSPORTS, "SHOAL_TRANSPORT", environment),
        limits=Limits.from_environment(environment),
    )


def text_from(name: str, environment: Mapping[str, str] = os.environ, default: str = "") -> str:
    """The variable's value; ConfigurationError if it is longer than TEXT_LENGTH_MAX, or not printable."""
    value = environment.get(name, default)
    if len(value) > TEXT_LENGTH_MAX or not value.isprintable():
        raise ConfigurationError(
            f"{name} has {len(value)} characters; it must be at most {TEXT_LENGTH_MAX}, all of them printable"
        )
    return value


def rank_from(name: str, environment: Mapping[str, str] = os.environ) -> int:
    """The number in SHOAL_RANK or SHOAL_SERVER_INDEX; -1 when it is not set."""
    return _whole(name, environment, -1)


def epoch_from(environment: Mapping[str, str] = os.environ) -> int:
    """The number in SHOAL_EPOCH: 1 for the first coordinator of a job, and one more for each that follows."""
    return _at_least_one("SHOAL_EPOCH", environment)


def take_estate() -> int | None:
    """The descriptor that SHOAL_ESTATE names; None without one, or where it names anything else. The first to ask has
    it: neither a second worker of this process nor the processes that it starts do."""
    try:
        descriptor = int(os.environ.pop(ESTATE, ""))
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"/memfd:{ESTATE_NAME}"):
            return None
        os.set_inheritable(descriptor, False)
    except (ValueError, OSError):
        return None
    return descriptor


def tls_from(environment: Mapping[str, str] = os.environ) -> Tls | None:
    """The files that SHOAL_TLS_* name, read once to see that they can be used (ConfigurationError)."""
    tls = Tls.from_environment(environment)
    return None if tls is None else transport_tls.verified(tls)


def check_exposure(address: str, job: Job, variable: str = "SHOAL_TOKEN") -> None:
    """Off loopback a token is required (ConfigurationError), and without TLS a line says who can read along.

    variable: where the token would have been read from.
    """
    if not address.startswith(f"{SCHEME}://") or is_loopback(host_and_port(address)[0]):
        return
    if not job.token:
        raise ConfigurationError(f"{address} can be reached from other machines: set {variable} on every process")
    if job.tls is None:
        print(
            f"shoal: warning: {address} can be reached from other machines, and without TLS whoever sees the network's "
            f"packets reads the token, parameters and gradients, and can change them; give --tls-cert, --tls-key and "
            f"--tls-ca (docs/security.md)",
            file=sys.stderr,
            flush=True,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener there; a name, when all that it stands for is so."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False  # listening will say what is wrong with it
    return all(ipaddress.ip_address(number).is_loopback for number in found)


def beside(name: str) -> ThreadPoolExecutor:
    """One thread for work that training should not notice: it has the lowest priority, where threads have one."""

    def step_back() -> None:
        with suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)

    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=step_back)


def run(main: Callable[[], Coroutine[Any, Any, Node]]) -> int:
    """Start a node and drive it until it halts or is told to end; returns the exit status."""
    try:
        uvloop.run(_until_halted(main))
    except FencedError as error:
        print(f"shoal: error: {error}", file=sys.stderr, flush=True)
        return DEPOSED
    except ShoalError as error:
        print(f"shoal: error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


async def _until_halted(main: Callable[[], Coroutine[Any, Any, Node]]) -> None:
    node = await main()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.halt, "")
    try:
        reason = await node.halted
    finally:
        await node.close()
        await asyncio.sleep(FLUSH_SECONDS)
    if reason:
        raise node.ends_by(reason)


def _one_of(known: Sequence[str], name: str, environment: Mapping[str, str]) -> str:
    """The variable's value; the first known one when it is not set."""
    value = environment.get(name) or known[0]
    if value not in known:
        raise ConfigurationError(f"{name}={value!r}; known: {', '.join(known)}")
    return value


def _at_least_one(name: str, environment: Mapping[str, str]) -> int:
    value = _whole(name, environment, 1)
    if value < 1:
        raise ConfigurationError(f"{name}={value} must be at least 1")
    return value


def _whole(name: str, environment: Mapping[str, str], default: int) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise ConfigurationError(f"{name}={environment[name]!r} is not a whole number") from None
