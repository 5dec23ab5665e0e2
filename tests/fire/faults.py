"""Every kind of fault, and how it strikes a job. A strike returns at once what it hit, in words."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from . import snapshots
from .job import Burnt, Job

Strike = Callable[[Job, Random], str]


@dataclass(frozen=True)
class Kind:
    """gentle: no worker can be lost by it, so that the contributors, and with them the bits, stay the same."""

    name: str
    strike: Strike
    gentle: bool = True
    aside: bool = False  # it strikes files, and training does not notice


def chosen(job: Job, chance: Random, which: str) -> tuple[str, int]:
    """Name and pid of a member whose name or state begins so."""
    names = job.named(which)
    if not names:
        raise Burnt(f"nobody is there of {which}: {job.shown()}")
    name = chance.choice(names)
    return name, job.pid(name)


def killed(which: str) -> Strike:
    def strike(job: Job, chance: Random) -> str:
        name, pid = chosen(job, chance, which)
        os.kill(pid, signal.SIGKILL)
        job.gone.add(pid)
        return f"{name} (pid {pid})"

    return strike


def stopped(which: str, least: float = 0.0, most: float = 0.0) -> Strike:
    """For ever, or for a time between these."""

    def strike(job: Job, chance: Random) -> str:
        name, pid = chosen(job, chance, which)
        handle = os.pidfd_open(pid)  # its number may be another's by then
        signal.pidfd_send_signal(handle, signal.SIGSTOP)
        seconds = chance.uniform(least, most)

        def go_on() -> None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)

        if most:
            job.later(seconds, go_on)
        else:
            os.close(handle)
            job.gone.add(pid)
        return f"{name} (pid {pid}), {f'for {seconds:.1f} s' if most else 'for ever'}"

    return strike


def stopped_then_killed(job: Job, chance: Random) -> str:
    """A worker is stopped for good. The others go on without it; the launcher starts it again once somebody kills it,
    for whether a worker that is silent still does something of its own, the launcher cannot know."""
    name, pid = chosen(job, chance, "worker/")
    handle = os.pidfd_open(pid)
    signal.pidfd_send_signal(handle, signal.SIGSTOP)

    def kill() -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)

    job.gone.add(pid)
    job.later(job.setting.lease_ms / 1000 + chance.uniform(1, 3), kill)
    return f"{name} (pid {pid})"


def cut(job: Job, chance: Random) -> str:
    rank, seconds = chance.randrange(len(job.links)), chance.uniform(0.5, 5.0)
    job.links[rank].cut()
    job.later(seconds, job.links[rank].mend)
    return f"worker/{rank}, for {seconds:.1f} s"


def slow(job: Job, chance: Random) -> str:
    rank, delay = chance.randrange(len(job.links)), chance.uniform(0.02, 0.2)
    job.links[rank].delay = delay
    job.later(3.0, job.links[rank].mend)
    return f"worker/{rank}, {1000 * delay:.0f} ms later each way, for 3 s"


def flipped(job: Job, chance: Random) -> str:
    """Who reads it must say so, and close the connection."""
    rank = chance.randrange(len(job.links))
    before = len(job.lines)
    job.links[rank].flips = 1
    said = ("the peer is not a Shoal process, or the stream is broken",)
    job.wait_for(
        lambda: job.look() and any(all(word in line for word in said) for line in job.lines[before:]),
        f"the coordinator says that a byte of worker {rank}'s is wrong",
        10.0,
    )
    return f"worker/{rank}"


KINDS = (
    Kind("SIGKILL coordinator", killed("coordinator")),
    Kind("SIGKILL primary", killed("leads shard")),
    Kind("SIGKILL backup", killed("backs shard")),
    Kind("SIGKILL worker", killed("worker/"), gentle=False),
    Kind("SIGSTOP coordinator", stopped("coordinator")),
    Kind("SIGSTOP coordinator, SIGCONT", stopped("coordinator", 0.2, 5.0)),
    Kind("SIGSTOP server", stopped("server/")),
    Kind("SIGSTOP server, SIGCONT", stopped("server/", 0.2, 6.0)),
    Kind("SIGSTOP worker, SIGKILL", stopped_then_killed, gentle=False),
    Kind("SIGSTOP worker, SIGCONT", stopped("worker/", 0.2, 6.0), gentle=False),
    Kind("cut link", cut, gentle=False),
    Kind("slow link", slow, gentle=False),
    Kind("flipped byte on the wire", flipped, gentle=False),
    Kind("full disk", snapshots.full_disk, aside=True),
    Kind("torn snapshot", snapshots.torn, aside=True),
    Kind("flipped byte in a snapshot", snapshots.flipped, aside=True),
)
NAMED = {kind.name: kind for kind in KINDS}
