"""What may happen to snapshots: no place for one, one that is torn, one with a byte that is not as it was."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from .job import SHOAL, TRAINING, Burnt, Job, environment

TINY_BYTES = 16 << 10
COMMAND_SECONDS = 90.0


def full_disk(job: Job, chance: Random) -> str:
    """A snapshot there fails in words, and the next one elsewhere does not."""
    with _no_place(job) as (place, how, words):
        version, error = job.snapshot(place / f"snapshot-{chance.getrandbits(40)}")
        if version or words not in error:
            raise Burnt(f"a snapshot on a full disk gave version {version}, error {error!r}")
    _taken(job, chance)
    return f"{how}: {error.rpartition(': ')[2]}"


def torn(job: Job, chance: Random) -> str:
    def tear(path: Path) -> None:
        os.truncate(path, chance.randrange(path.stat().st_size))

    return _damaged(job, chance, tear)


def flipped(job: Job, chance: Random) -> str:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)

    return _damaged(job, chance, flip)


def _taken(job: Job, chance: Random) -> Path:
    path = job.folder / "snapshots" / f"snapshot-{chance.getrandbits(40):013d}"
    _, error = job.snapshot(path)
    if error:
        raise Burnt(f"a snapshot was not written: {error}")
    return path


def _damaged(job: Job, chance: Random, damage: Callable[[Path], None]) -> str:
    """`shoal snapshot verify` must find it, `shoal run --resume` refuse it by name and offer the one before."""
    before, path = _taken(job, chance), _taken(job, chance)
    file = chance.choice(sorted(path.glob("shard-*.safetensors")))
    damage(file)
    script = (TRAINING, job.folder / "resumed", job.setting.model, 0)
    verifying = _shoal(job, "snapshot", "verify", path)
    resuming = _shoal(job, "run", "--workers", 1, "--resume", path, *script)
    status, said = _told(verifying)
    if status != 1 or file.name not in said:
        raise Burnt(f"`shoal snapshot verify` of a damaged {file} ended with {status}: {said}")
    status, said = _told(resuming)
    if status == 0 or file.name not in said or before.name not in said:
        raise Burnt(f"`shoal run --resume` of a damaged {file} ended with {status}: {said}")
    file.unlink()
    return f"{file.name} of {path.name}"


def _shoal(job: Job, *arguments: object) -> subprocess.Popen[str]:
    """Start such a command, away from the job."""
    (job.folder / "elsewhere").mkdir(exist_ok=True)
    return subprocess.Popen(
        [*SHOAL, *map(str, arguments)],
        env=environment(job.folder / "elsewhere") | {"COLUMNS": "1000"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _told(command: subprocess.Popen[str]) -> tuple[int, str]:
    """How the command ended, and what it said, on one line."""
    try:
        said, _ = command.communicate(timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        command.kill()
        said, _ = command.communicate()
        said = f"(killed after {COMMAND_SECONDS:g} s) {said}"
    return command.returncode, " ".join(said.split())


@contextmanager
def _no_place(job: Job) -> Iterator[tuple[Path, str, str]]:
    """A directory that is too small for a snapshot: where it is, why, and what a server will say of it."""
    place = job.folder / "tiny"
    place.mkdir(exist_ok=True)
    options = f"size={TINY_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "fire", str(place)], capture_output=True, timeout=10, check=False
    )
    if mounted.returncode == 0:
        try:
            yield place, f"tmpfs of {TINY_BYTES >> 10} KiB", "No space left"
        finally:
            subprocess.run(["umount", "-l", str(place)], timeout=10, check=True)
        return
    pids = [job.pid(name) for name in job.named("server/")]
    limits = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    try:
        for pid, (_, hard) in zip(pids, limits, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, hard))
        yield place, "file size limit of 1 KiB", "File too large"
    finally:
        for pid, limit in zip(pids, limits, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
