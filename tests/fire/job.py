"""A burning job: `shoal run` as a process of its own, watched from outside by `shoal status` and the workers' notes.

No wait is without a deadline, and when the `with` block is left every process that the job had has ended: one that
had not by itself is noted in `left_behind` and killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.errors import ShoalError
from shoal.launch.jobs import running
from shoal.runtime import visitor
from shoal.wire.messages import Status

from .link import Link
from .notes import Notes

TRAINING = Path(__file__).with_name("training.py")
SHOAL = (sys.executable, "-c", "from shoal.cli.main import main; main()")
LEASE_MS = 8000  # half of it after a coordinator was stopped another one is started, and must be up before all of it is
LIMITS = {"SHOAL_LEASE_MS": LEASE_MS, "SHOAL_GRACE_MS": 300, "SHOAL_HEARTBEAT_MS": 200, "SHOAL_RESEND_MS": 200}
POLL_SECONDS = 0.05
ASK_MS = 500
WAIT_SECONDS = 90.0  # for whatever must come
SETTLE_SECONDS = 3.0  # for processes to be gone after the launcher


class Burnt(Exception):
    """Something that was promised does not hold."""


@dataclass(frozen=True)
class Setting:
    """What job it is. model: see training.py."""

    model: str = "counting:sync"
    workers: int = 3
    servers: int = 3
    replicas: int = 2
    pause: float = 0.02  # of a worker between steps: two cores have time left for processes that start again
    transport: str = "auto"
    lease_ms: int = LEASE_MS


@dataclass
class Job:
    """See above; made with the folder in which it leaves everything."""

    folder: Path
    setting: Setting = field(default_factory=Setting)
    lines: list[str] = field(default_factory=list)
    pids: dict[int, str] = field(default_factory=dict)  # every process seen, with its start time and name
    left_behind: list[str] = field(default_factory=list)
    resident: list[tuple[float, str, int]] = field(default_factory=list)  # (seconds, role, bytes)
    links: list[Link] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)  # pids of members that will not come back
    _due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _status: Status | None = None

    def __enter__(self) -> Job:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.notes = Notes(self.folder)
        self._memory = _shared_memory()
        setting, port = self.setting, _free_port()
        self.links = [Link(port) for _ in range(setting.workers)]
        command = [
            *SHOAL, "run", "--workers", setting.workers, "--servers", setting.servers, "--replicas", setting.replicas,
            "--max-restarts", 100_000, "--transport", setting.transport, "--port", port,
            TRAINING, self.folder, setting.model, setting.pause,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env=environment(self.folder)
            | {"SHOAL_LEASE_MS": str(setting.lease_ms), "FIRE_LINKS": " ".join(link.address for link in self.links)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        self.process.kill()
        self.process.wait()
        self._reader.join(SETTLE_SECONDS)
        for link in self.links:
            link.close()
        self._look_for_remains()

    def _read(self) -> None:
        assert self.process.stdout is not None
        began = time.monotonic()
        with (self.folder / "output.txt").open("w", buffering=1) as file:
            for line in self.process.stdout:
                self.lines.append(f"{time.monotonic() - began:8.2f} {line.rstrip()}")
                file.write(self.lines[-1] + "\n")

    # --- looking ------------------------------------------------------------------------------------

    def look(self) -> Status | None:
        """The job's status, or None while its coordinator gives none; also does what is due."""
        for item in [item for item in self._due if item[0] <= time.monotonic()]:
            self._due.remove(item)
            item[1]()
        self.notes.look()
        self._status = None
        for record in running(self.folder / "shoal"):
            with suppress(ShoalError):
                self._status = visitor.status(record.address, record.job, record.token, ASK_MS)
        for member in self._status.members if self._status is not None else ():
            started = _started(member.pid)
            if started:
                self.pids[member.pid] = f"{started} {member.name}"
                role = member.name.partition("/")[0]
                self.resident.append((time.monotonic(), role, _resident(member.pid)))
        return self._status

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do that in so many seconds, while something is waited for."""
        self._due.append((time.monotonic() + seconds, act))

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Burnt if it does not come."""
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise Burnt(f"the job ended with exit status {self.process.returncode} before {what}")
            if time.monotonic() >= until:
                raise Burnt(f"not within {seconds:g} s: {what}; {self.shown()}")
            time.sleep(POLL_SECONDS)
        while self._due and time.monotonic() < until:
            self.look()
            time.sleep(POLL_SECONDS)

    def told(self, commits: int) -> bool:
        """Whether workers were told of so many commits."""
        self.look()
        return len(self.notes.commits) >= commits

    def reached(self, clock: int) -> bool:
        """Whether a worker is done with that clock."""
        self.look()
        return self.notes.clock >= clock

    def whole(self) -> bool:
        """Whether every shard has all of its replicas, and every worker is there, none of them one that is gone."""
        status, setting = self.look(), self.setting
        if status is None or status.phase != "running" or any(member.pid in self.gone for member in status.members):
            return False
        states = [member.state for member in status.members if member.name.startswith("server/")]
        workers = [member for member in status.members if member.name.startswith("worker/")]
        wanted = [f"leads shard {shard}" for shard in range(setting.servers)]
        wanted += [f"backs shard {shard}" for shard in range(setting.servers)] * (setting.replicas - 1)
        if setting.replicas == 1:
            wanted = ["serving"] * setting.servers
        coming = any(member.state in ("joined", "declared") for member in workers)
        return sorted(states) == sorted(wanted) and len(workers) == setting.workers and not coming

    def shown(self) -> str:
        if self._status is None:
            return "the coordinator gives no status"
        members = ", ".join(f"{member.name} {member.state} at {member.clock}" for member in self._status.members)
        return f"version {self._status.version}, noted {self.notes.version}: {members}; waiting: {self._status.waiting}"

    def pid(self, name: str) -> int:
        """Of the member with this name, or 0."""
        status = self._status or self.look()
        return next((member.pid for member in status.members if member.name == name), 0) if status is not None else 0

    def named(self, start: str) -> list[str]:
        """The members whose state, or whose name, begins so."""
        status = self._status or self.look()
        members = status.members if status is not None else ()
        return [member.name for member in members if start in (member.name[: len(start)], member.state[: len(start)])]

    def said(self, *words: str) -> bool:
        """Whether one line of the job's output holds all of these."""
        return any(all(word in line for word in words) for line in self.lines)

    # --- asking -------------------------------------------------------------------------------------

    def snapshot(self, path: Path) -> tuple[int, str]:
        """Have worker 0 take one; returns its version, or what went wrong."""
        answer = self.folder / "answer"
        answer.unlink(missing_ok=True)
        draft = self.folder / "snapshot.new"
        draft.write_text(str(path))
        draft.rename(self.folder / "snapshot")
        self.wait_for(lambda: self.look() is not None and answer.exists(), f"the snapshot {path.name} is taken")
        facts = json.loads(answer.read_text())
        return facts["version"], facts["error"]

    def end(self) -> list[dict[str, Any]]:
        """Let the job come to its end; returns the results of its workers, the newest last."""
        draft = self.folder / "enough.new"
        self.notes.look()
        until = self.notes.clock + 100
        draft.write_text(str(until))
        draft.rename(self.folder / "enough")
        return self.ended()

    def ended(self, seconds: float = WAIT_SECONDS) -> list[dict[str, Any]]:
        """Wait for the job's end; raises Burnt unless it ends well."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            self.look()
            time.sleep(POLL_SECONDS)
        if self.process.returncode != 0:
            status = self.process.returncode
            raise Burnt(f"exit status {status} (None: it did not end in {seconds:g} s); {self.shown()}")
        self.notes.look()
        results = [json.loads(path.read_text()) for path in self.folder.glob("result-*.json")]
        return sorted(results, key=lambda result: (result["passes"], result["version"]))

    def _look_for_remains(self) -> None:
        until = time.monotonic() + SETTLE_SECONDS
        while True:
            alive = [pid for pid, known in self.pids.items() if _started(pid) == known.split()[0]]
            memory = _shared_memory() - self._memory
            if (not alive and not memory) or time.monotonic() >= until:
                break
            time.sleep(POLL_SECONDS)
        self.left_behind += [f"process {pid} ({self.pids[pid].split()[1]})" for pid in alive]
        self.left_behind += [f"/dev/shm/{name}" for name in memory]
        self.left_behind += [str(path) for path in (self.folder / "shoal").glob("*.json")]
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def environment(folder: Path) -> dict[str, str]:
    """Of `shoal` commands: the job is found in this folder, and by nobody else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHOAL_", "FIRE_"))}
    limits = {name: str(value) for name, value in LIMITS.items()}
    return kept | limits | {"XDG_RUNTIME_DIR": str(folder), "OMP_NUM_THREADS": "1", "SHOAL_SERVER_THREADS": "1"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "shoal" in name}


def _started(pid: int) -> str:
    """When the process began, as the kernel counts; "" if there is none, or only its remains."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[19]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
