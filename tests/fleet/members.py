"""A fleet of real processes on loopback, and jobs on it: `shoal serve`, `launch`, `shoal run`. All end by pid."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shoal.launch.local import launch
from shoal.runtime import visitor
from shoal.wire.fleet import Places
from shoal.wire.messages import Status

TOKEN = "of this test's fleet"
TRAINER = str(Path(__file__).parents[1] / "promises" / "worker.py")
SHOAL = (sys.executable, "-m", "shoal.cli.main")
WAIT_SECONDS = 60.0  # for what takes a few seconds on a machine that has nothing else to do


def wait_until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass(eq=False)
class Spoken:
    """A process whose lines are kept."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())

    def found(self, words: str) -> re.Match[str] | None:
        return next((found for line in list(self.lines) if (found := re.search(words, line))), None)

    def wait(self) -> int:
        status = self.popen.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        return status


@contextmanager
def shoal(*arguments: object, **environment: object) -> Iterator[Spoken]:
    """A `shoal` command that runs until the block is left."""
    process = Spoken(
        subprocess.Popen(
            [*SHOAL, *map(str, arguments)],
            env=os.environ | {"SHOAL_FLEET_TOKEN": TOKEN} | {name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    try:
        yield process
    finally:
        process.popen.kill()
        process.wait()
        if sys.exc_info()[0] is not None:
            print(f"--- shoal {arguments[0]}, process {process.popen.pid}", *process.lines, sep="\n")


@dataclass
class Member:
    process: Spoken
    address: str

    @property
    def pid(self) -> int:
        return self.process.popen.pid

    def places(self) -> Places:
        """What it says of itself (not of use over TLS)."""
        return visitor.places(self.address, TOKEN, 10_000)

    def pids(self) -> list[int]:
        """Of the servers that it lends."""
        return [pid for loan in self.places().loans for _, pid in loan.processes]


@contextmanager
def members(count: int, places: int = 2, **environment: object) -> Iterator[list[Member]]:
    """So many members, each of which lends so many places."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(shoal("serve", "--listen", "127.0.0.1:0", "--places", places, **environment))
            for _ in range(count)
        ]
        for process in started:
            wait_until(lambda process=process: process.found("^SHOAL READY"), "a member lends")
        yield [Member(process, process.lines[-1].removeprefix("SHOAL READY ")) for process in started]


def on(fleet: Sequence[Member]) -> dict[str, str]:
    """What a job's launcher finds in its environment."""
    addresses = ",".join(member.address.removeprefix("tcp://") for member in fleet)
    return {**os.environ, "SHOAL_FLEET": addresses, "SHOAL_FLEET_TOKEN": TOKEN}


@dataclass
class Job:
    """A training of so many clocks, which can be looked at while it runs, and what became of it."""

    clocks: int
    place: Path
    pause: float = 0.0
    servers: int = 2
    name: str = ""
    lines: list[tuple[str, str]] = field(default_factory=list)
    version: int = 0
    outcome: int | Exception | None = None

    @property
    def command(self) -> tuple[str, ...]:
        self.place.mkdir(exist_ok=True)
        return (TRAINER, "clocks", str(self.clocks), "--results", str(self.place), "--pause", str(self.pause))

    def run(self, environment: dict[str, str]) -> None:
        try:
            self.outcome = launch(
                self.command,
                2,
                self.servers,
                on_line=lambda source, text: self.lines.append((source, text)),
                on_status=self._look,
                env=environment | ({"SHOAL_JOB": self.name} if self.name else {}),
            )
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            self.outcome = error

    def _look(self, status: Status) -> None:
        self.version = status.version

    def start(self, environment: dict[str, str]) -> threading.Thread:
        """Run on a thread of its own."""
        thread = threading.Thread(target=self.run, args=(environment,))
        thread.start()
        return thread

    def results(self) -> list[bytes]:
        return [(self.place / f"{rank}").read_bytes() for rank in range(2)]
