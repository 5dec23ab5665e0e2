"""Leadership in a directory: it lasts until it is resigned, its process ends, or the directory is tampered with."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from pathlib import Path

from shoal.errors import FencedError
from shoal.registry.base import checked_name, checked_value
from shoal.registry.files import file_name, naming, placed

LOOK_SECONDS = 0.05  # between two looks at whether the lock is still the lock


class EmbeddedLeadership:
    """See base.Leadership. lock, entry: descriptors that hold the locks; this closes them."""

    def __init__(self, name: str, place: Path, epoch: int, lock: int, entry: int) -> None:
        self.epoch = epoch
        self.until = math.inf
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._name = name
        self._place = place
        self._lock = lock
        self._entry = entry
        # Writes happen in a thread, so that no event loop waits for a disk. A wait for one may be cancelled, the
        # thread goes on; so it is the thread that keeps the lock from being let go in the middle of a write.
        self._writing = threading.Lock()
        self._turn = asyncio.Lock()  # threads take no turns of their own
        self._released = False
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def write(self, key: str, value: bytes) -> None:
        checked_value(checked_name(key), value)
        async with self._turn:
            await asyncio.to_thread(self._write, key, value)

    async def resign(self) -> None:
        self._end(f"epoch {self.epoch} resigned")
        self._looking.cancel()
        await asyncio.to_thread(self._release)

    def _write(self, key: str, value: bytes) -> None:
        with self._writing, naming(self._name, key):
            reason = self.lost.result() if self.lost.done() else self._overtaken()
            if reason:
                raise FencedError(f"{key} was not written to {self._name}: {reason}; campaign again before writing")
            placed(self._place / "values" / file_name(key), value)

    def _release(self) -> None:
        with self._writing:
            if self._released:
                return
            self._released = True
            os.close(self._entry)  # the entry stays: unlocked, it says that nobody leads, and how far epochs are
            os.close(self._lock)  # last: from here on another leads

    async def _look(self) -> None:
        while not (reason := self._overtaken()):
            await asyncio.sleep(LOOK_SECONDS)
        self._end(reason)

    def _overtaken(self) -> str:
        """Why somebody else may lead although this process never let go; "" as long as nobody can."""
        try:
            if os.path.samestat(os.fstat(self._lock), os.stat(self._place / "lock")):
                return ""
        except OSError:
            pass  # as bad as another file
        return f"the lock under which epoch {self.epoch} led was removed or replaced"

    def _end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
