"""The registry of one machine: a directory, no service. The kernel's file locks say who leads.

Below <directory>/<job>/ lie
    lock            locked by whoever leads, so that only one does
    epoch           the last epoch given out, on disk before anybody sees a leader under it
    leader          the leader's entry, locked by the process that wrote it for as long as it leads
    values/<key>    what leaders wrote, '/' in the key as '+'
The kernel drops locks with their process (and with what that forked without exec, which Shoal never
does), so a leader that was killed leads no longer at once; one that merely hangs (SIGSTOP) keeps its
locks, and whoever watches over processes must kill it. Every file is complete before it has its name
(temporary file, fsync, rename), and only the holder of `lock` writes, so whatever a crash leaves
behind is valid; at worst an epoch is left out.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from shoal.errors import ConfigurationError, DeadlineError, RegistryError
from shoal.registry import base
from shoal.registry.base import VALUE_BYTES_MAX, Leader, checked_job, checked_name, encoded, told
from shoal.registry.embedded_leadership import EmbeddedLeadership
from shoal.registry.files import file_name, naming, placed, read, synced

TRY_SECONDS = 0.02  # between two tries to take the lock
POLL_SECONDS = 0.05  # between two looks at who leads


class EmbeddedRegistry:
    """See base.Registry. What is asked is answered from the local disk at once, so only `campaign` has a deadline."""

    def __init__(self, directory: Path, job: str) -> None:
        """directory is made if it is missing (ConfigurationError if others could write to it)."""
        self.name = f"registry {directory / job}"
        self._job = job
        self._place = _own(_own(directory) / checked_job(job))
        self._values = _own(self._place / "values")
        self._held: list[EmbeddedLeadership] = []
        self._closed = False

    async def campaign(self, name: str, address: str, deadline_ms: int) -> EmbeddedLeadership:
        encoded(name, address)  # refuse what cannot be, before the wait
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_ms / 1000
        while not self._closed:
            if (lock := self._locked()) is not None:
                return self._lead(lock, name, address)
            if loop.time() >= deadline:
                raise DeadlineError(
                    f"{self.name} did not let {name} lead job {self._job} within {deadline_ms / 1000:g} s: "
                    f"{told(self._leader())}; wait longer, or end that process"
                )
            await asyncio.sleep(TRY_SECONDS)
        raise RegistryError(f"{self.name} was closed while {name} waited to lead")

    async def leader(self) -> Leader | None:
        return self._leader()

    async def changes(self) -> AsyncGenerator[Leader | None, None]:
        last: list[Leader | None] = []
        while not self._closed:
            leader = self._leader()
            if [leader] != last:
                last = [leader]
                yield leader
            await asyncio.sleep(POLL_SECONDS)

    async def read(self, key: str) -> bytes | None:
        checked_name(key)
        with naming(self.name, key):
            return read(self._values / file_name(key))

    async def close(self) -> None:
        self._closed = True
        for leadership in self._held:
            await leadership.resign()

    # --- who leads ----------------------------------------------------------------------------

    def _locked(self) -> int | None:
        """A descriptor that holds the lock; None: somebody else leads."""
        path = self._place / "lock"
        with naming(self.name, "lock"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except (BlockingIOError, FileNotFoundError):
                pass  # held by another, or replaced just now
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            return None

    def _lead(self, lock: int, name: str, address: str) -> EmbeddedLeadership:
        """Lead, holding the lock. Waits for the disk, a few milliseconds once in a leadership."""
        entry = -1
        try:
            with naming(self.name, "epoch"):
                epoch = self._last_epoch() + 1
                placed(self._place / "epoch", b"%d\n" % epoch)
            hidden, path = self._place / "leader.new", self._place / "leader"
            with naming(self.name, "leader"):
                hidden.unlink(missing_ok=True)
                entry = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                fcntl.flock(entry, fcntl.LOCK_EX)
                os.write(entry, encoded(name, address, epoch))
                os.fsync(entry)
                hidden.rename(path)  # complete and locked from the moment it can be seen
                synced(self._place)
        except BaseException:
            for descriptor in (entry, lock):
                if descriptor >= 0:
                    os.close(descriptor)
            raise
        leadership = EmbeddedLeadership(self.name, self._place, epoch, lock, entry)
        self._held = [held for held in self._held if not held.lost.done()] + [leadership]
        return leadership

    def _last_epoch(self) -> int:
        text = read(self._place / "epoch")
        entry = read(self._place / "leader")
        if text is not None and not text.strip().isdigit():
            raise RegistryError(
                f"{self._place / 'epoch'} holds {text!r} where Shoal writes a number: put back the greatest epoch "
                "that its logs show, or use a new directory for a job that starts anew"
            )
        # The last entry, too: whoever removed one of the files has not made an epoch repeat.
        found = base.decoded(entry, str(self._place / "leader")).epoch if entry else 0
        return max(int(text or 0), found)

    def _leader(self) -> Leader | None:
        """The leader whose entry is there and locked by a process that lives."""
        path = self._place / "leader"
        with naming(self.name, "leader"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            try:
                # Nobody ever takes this lock again, so trying it for a moment keeps nobody from leading.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                return base.decoded(os.read(descriptor, VALUE_BYTES_MAX), str(path))
            finally:
                os.close(descriptor)


def _own(directory: Path) -> Path:
    """The directory, made if need be (ConfigurationError unless it is ours and nobody else can write to it)."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be a registry: {error.strerror}") from None
    if found.st_uid != os.geteuid():
        raise ConfigurationError(f"{directory} belongs to user {found.st_uid}: a registry must be one's own directory")
    if found.st_mode & 0o022:
        raise ConfigurationError(
            f"others may write to {directory}, and so could make themselves leader: chmod go-w {directory}"
        )
    return directory
