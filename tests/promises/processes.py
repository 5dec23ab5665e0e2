"""Worker processes of the promises' tests: started against a job, watched, killed by pid at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from shoal.config import Job
from shoal.launch.estate import Estates
from shoal.runtime.process import ESTATE

WORKER = Path(__file__).with_name("worker.py")
WAIT_SECONDS = 40.0


@dataclass(eq=False)
class Process:
    """One life of one worker."""

    rank: int
    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait(self) -> int:
        """Its exit status; negative: the signal that killed it."""
        status = self.popen.wait(WAIT_SECONDS)
        self.reader.join(WAIT_SECONDS)
        return status

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


class Crew:
    """The worker processes of one job."""

    def __init__(self, job: Job, coordinator: str) -> None:
        self._job, self._coordinator = job, coordinator
        self.estates: Estates | None = None  # what each life leaves to the next of its rank
        self.processes: list[Process] = []

    def start(self, rank: int, *arguments: object) -> Process:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        environment |= {f"SHOAL_{item.name.upper()}": str(getattr(self._job.limits, item.name))
                        for item in fields(self._job.limits)}  # fmt: skip
        environment |= {
            "SHOAL_JOB": self._job.name,
            "SHOAL_TOKEN": self._job.token,
            "SHOAL_WORKERS": str(self._job.workers),
            "SHOAL_SERVERS": str(self._job.servers),
            "SHOAL_COORDINATOR": self._coordinator,
            "SHOAL_RANK": str(rank),
            "SHOAL_TRANSPORT": self._job.transport,
        }
        estate = self.estates.of(rank) if self.estates is not None else None
        if estate is not None:
            environment[ESTATE] = str(estate)
        popen = subprocess.Popen(
            [sys.executable, "-u", str(WORKER), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=() if estate is None else (estate,),
        )
        self.processes.append(Process(rank, popen))
        return self.processes[-1]


@contextmanager
def crew(job: Job, coordinator: str) -> Iterator[Crew]:
    """No process of the crew outlives the block."""
    people = Crew(job, coordinator)
    try:
        yield people
    finally:
        for process in people.processes:
            process.popen.kill()
            process.wait()
            if sys.exc_info()[0] is not None:
                print(f"--- worker {process.rank}, process {process.pid}", *process.lines, sep="\n")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
