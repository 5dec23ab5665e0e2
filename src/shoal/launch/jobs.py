"""The jobs that run on this machine, each a small file that only its owner may read.

A file names a job as long as its launcher lives: the launcher holds a lock on it, which the kernel
drops with the process. So a file left behind by a killed launcher never passes for a running job.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from shoal.config import Tls


class JobRecord(msgspec.Struct, frozen=True):
    """How to reach a job's coordinator."""

    job: str
    address: str
    token: str
    pid: int  # the launcher's
    tls: Tls | None = msgspec.field(default_factory=Tls.from_environment)  # unless said otherwise, this process's own
    registry: str = ""  # its URL, where one says which coordinator leads


def directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the files lie: $XDG_RUNTIME_DIR/shoal, else ~/.cache/shoal/jobs."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    return Path(runtime, "shoal") if runtime else Path.home() / ".cache" / "shoal" / "jobs"


@contextmanager
def published(record: JobRecord, place: Path | None = None) -> Iterator[None]:
    """Lets `running` find the job inside the `with` block."""
    place = place or directory()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = place / f"{record.pid}.json"
    hidden = path.with_suffix(".new")
    hidden.unlink(missing_ok=True)
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, msgspec.json.encode(record))
        hidden.rename(path)  # complete and locked from the moment it can be seen
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def running(place: Path | None = None) -> list[JobRecord]:
    """The jobs whose launchers live, oldest first. Files of dead ones are removed."""
    found = []
    for path in (place or directory()).glob("*.json"):
        try:
            with path.open("rb") as file:
                started = os.fstat(file.fileno()).st_mtime
                if _locked(file.fileno()):
                    found.append((started, msgspec.json.decode(file.read(), type=JobRecord)))
                else:
                    path.unlink(missing_ok=True)
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # ended meanwhile, or not one of ours
    return [record for _, record in sorted(found, key=lambda item: item[0])]


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
