"""Local files past the page cache, where the system can.

A snapshot is written once and read back once: held in the page cache it would cost a copy by the system, the work
of its flushing threads (which no priority of ours holds back), and the memory that training could use. What is
read past the cache is what the disk holds. Where a file system knows no such access, it is an ordinary file.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
from pathlib import Path
from typing import Any

ALIGNED_BYTES = 4096  # of memory, offsets and lengths
BUFFER_BYTES = (4 << 20) + ALIGNED_BYTES  # a block of 1 M elements, wherever it begins


class Sink(io.RawIOBase):
    """A new file (in place of an earlier one) to write from front to back; nothing counts before sync()."""

    def __init__(self, path: Path) -> None:
        self._file, self._direct = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._memory = mmap.mmap(-1, BUFFER_BYTES)
        self._held = 0
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            part = view[done : done + BUFFER_BYTES - self._held]
            self._memory[self._held : self._held + len(part)] = part
            self._held += len(part)
            done += len(part)
            if self._held == BUFFER_BYTES:
                self._drain()
        self._size += done
        return done

    def sync(self) -> None:
        """Write what is left, and wait until the disk holds all of it. Nothing can be written after that."""
        if self._held:
            missing = -self._held % ALIGNED_BYTES
            self._memory[self._held : self._held + missing] = bytes(missing)
            self._held += missing
            self._drain()
            os.ftruncate(self._file, self._size)
        os.fsync(self._file)
        if not self._direct:
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
            self._memory.close()
        super().close()

    def _drain(self) -> None:
        done = 0
        with memoryview(self._memory) as view:
            while done < self._held:
                with view[done : self._held] as rest:
                    try:
                        done += os.write(self._file, rest)
                    except OSError as error:
                        if error.errno != errno.EINVAL or not self._direct:
                            raise
                        self._direct = _ordinary(self._file)  # it takes the flag, and no such writes
                if done % ALIGNED_BYTES and self._direct:
                    self._direct = _ordinary(self._file)  # cut short: the rest is not where it would have to lie
        self._held = 0


class Source(io.RawIOBase):
    """An existing file to read: from front to back in large pieces, or after seek() just what is asked for."""

    def __init__(self, path: Path) -> None:
        self._file, self._direct = _open(path, os.O_RDONLY)
        self._memory = mmap.mmap(-1, BUFFER_BYTES)
        self._offset = 0  # of the next byte that is not in memory
        self._begin = self._end = 0  # of what is in memory, and not given out
        self._exactly = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the beginning of the file")
        self._offset, self._begin, self._end, self._exactly = offset, 0, 0, True
        return offset

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        if self._begin == self._end:
            self._fill(len(view))
        count = min(len(view), self._end - self._begin)
        with memoryview(self._memory) as memory:
            view[:count] = memory[self._begin : self._begin + count]
        self._begin += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
            self._memory.close()
        super().close()

    def _fill(self, wanted: int) -> None:
        """Bring the next bytes into memory: none at the end of the file."""
        skipped = self._offset % ALIGNED_BYTES
        size = BUFFER_BYTES
        if self._exactly:
            size = min(size, -(-(skipped + wanted) // ALIGNED_BYTES) * ALIGNED_BYTES)
        with memoryview(self._memory) as memory, memory[:size] as part:
            try:
                count = os.preadv(self._file, [part], self._offset - skipped)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = _ordinary(self._file)
                count = os.preadv(self._file, [part], self._offset - skipped)
        self._begin, self._end = min(skipped, count), count
        self._offset += self._end - self._begin
        self._exactly = False


def _open(path: Path, flags: int) -> tuple[int, bool]:
    """A descriptor, and whether it is past the page cache."""
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags, 0o666), False


def _ordinary(file: int) -> bool:
    """From here on through the page cache: False, for it is not past it any more."""
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
    return False
