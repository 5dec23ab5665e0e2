"""What the processes of a job read from their environment, and how they end.

A node process prints one line "SHOAL READY <address>" when it serves, the coordinator "SHOAL BEGUN"
when the job runs, and each one line "shoal: error: ..." on stderr (exit status 1) when it cannot go on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import uvloop

from shoal.config import TRANSPORTS, Job, Limits
from shoal.errors import ConfigurationError, JobError, ShoalError
from shoal.runtime.node import Node

READY = "SHOAL READY"
BEGUN = "SHOAL BEGUN"
FLUSH_SECONDS = 0.2  # for last words to leave before the process ends
LOOPBACK = ("127.", "localhost", "[::1]")


def job_from(environment: Mapping[str, str] = os.environ) -> Job:
    """The job that SHOAL_JOB, SHOAL_TOKEN, SHOAL_WORKERS and SHOAL_SERVERS describe."""
    return Job(
        name=environment.get("SHOAL_JOB", Job.name),
        token=environment.get("SHOAL_TOKEN", ""),
        workers=_whole("SHOAL_WORKERS", environment, 1),
        servers=_whole("SHOAL_SERVERS", environment, 1),
        threads=_at_least_one("SHOAL_SERVER_THREADS", environment),
        transport=_one_of(TRANSPORTS, "SHOAL_TRANSPORT", environment),
        limits=Limits.from_environment(environment),
    )


def rank_from(name: str, environment: Mapping[str, str] = os.environ) -> int:
    """The number in SHOAL_RANK or SHOAL_SERVER_INDEX; -1 when it is not set."""
    return _whole(name, environment, -1)


def epoch_from(environment: Mapping[str, str] = os.environ) -> int:
    """The number in SHOAL_EPOCH: 1 for the first coordinator of a job, and one more for each that follows."""
    return _at_least_one("SHOAL_EPOCH", environment)


def check_exposure(address: str, job: Job) -> None:
    """Off loopback a token is required (ConfigurationError)."""
    host = address.removeprefix("tcp://")
    if not job.token and not host.startswith(LOOPBACK) and not address.startswith("inproc://"):
        raise ConfigurationError(f"{address} can be reached from other machines: set SHOAL_TOKEN on every process")


def run(main: Callable[[], Coroutine[Any, Any, Node]]) -> int:
    """Start a node and drive it until it halts or is told to end; returns the exit status."""
    try:
        uvloop.run(_until_halted(main))
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
        raise JobError(reason)


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
