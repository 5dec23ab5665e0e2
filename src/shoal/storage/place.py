"""Where the files of a snapshot lie: a directory of this machine, or whatever fsspec reaches by a URL.

A file is complete before it has its name: on this machine a temporary file is synced and renamed; elsewhere
the object appears when it is closed, and a manifest written last tells whole snapshots from cut-off ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from shoal.errors import SnapshotError
from shoal.storage.direct import Sink, Source


class Place(Protocol):
    """A directory that holds files, as `str` names it. What fails raises OSError, except where it says otherwise."""

    @property
    def name(self) -> str:
        """Its last part, such as "snapshot-000050"."""

    @property
    def parent(self) -> Place: ...

    def at(self, name: str) -> str:
        """A file's whole path or URL, for messages."""

    def names(self) -> list[str]:
        """The files in it, links among them; none if there is no such directory."""

    def below(self) -> list[Place]:
        """The directories in it; a link to one is left out, as it is somewhere else in truth."""

    def size_bytes(self, name: str) -> int: ...

    def modified(self, name: str) -> float:
        """When the file was last written, in seconds since 1970; infinity where the file system cannot tell."""

    def open(self, name: str) -> BinaryIO: ...

    def open_once(self, name: str) -> BinaryIO:
        """To read what the disk holds rather than what memory does, and to leave memory as it is, where that can be."""

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that is there, in place of an earlier one, once the `with` block ends without an error.

        SnapshotError if it cannot be written.
        """

    def link(self, name: str, source: Place) -> bool:
        """Let `name` be the file of that name in `source`, stored once; False where that cannot be done."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove these files in this order, then the directory if nothing is left in it."""


def place(directory: Path | str) -> Place:
    """The place of a path or a URL (SnapshotError for a URL that nothing installed can reach)."""
    if is_url(directory):
        from shoal.storage.remote import Remote  # fsspec, which most jobs never need

        return Remote.at_url(str(directory))
    path = Path(directory)
    return Local(path if path.name not in ("", "..") else path.resolve())


def is_url(directory: Path | str) -> bool:
    """Whether this is a URL of fsspec's, such as s3://bucket/run or memory://run, and not a path."""
    return isinstance(directory, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)", directory) is not None


def absolute(directory: str | os.PathLike[str]) -> str:
    """The same for a process with another working directory: a URL as it is, a path from the root on."""
    text = os.fspath(directory)
    return text if is_url(text) else str(Path(text).resolve())


class Local:
    """A directory of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> Place:
        return Local(self.path.parent)

    def at(self, name: str) -> str:
        return str(self.path / name)

    def names(self) -> list[str]:
        if not self.path.is_dir():
            return []
        return sorted(item.name for item in self.path.iterdir() if item.is_symlink() or not item.is_dir())

    def below(self) -> list[Place]:
        if not self.path.is_dir():
            return []
        return [Local(item) for item in sorted(self.path.iterdir()) if item.is_dir() and not item.is_symlink()]

    def size_bytes(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def modified(self, name: str) -> float:
        return (self.path / name).stat().st_mtime

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")

    def open_once(self, name: str) -> BinaryIO:
        return cast(BinaryIO, Source(self.path / name))

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        path = self.path / name
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        try:
            fresh = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            with Sink(temporary) as file:
                yield cast(BinaryIO, file)
                file.sync()
            temporary.rename(path)
            _sync(self.path)
            if fresh:
                _sync(self.path.parent)
        except OSError as error:
            raise SnapshotError(f"{path} cannot be written: {error}") from None
        finally:
            with suppress(OSError):  # it has its name by now, or the error that stopped the writing is the one to tell
                temporary.unlink()

    def link(self, name: str, source: Place) -> bool:
        if not isinstance(source, Local):
            return False
        temporary = self.path / f".{name}.{os.getpid()}.link.tmp"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            temporary.hardlink_to(source.path / name)
            temporary.rename(self.path / name)
            _sync(self.path)
        except OSError:
            return False  # another file system, or one without hard links
        finally:
            with suppress(OSError):  # renamed, or never made
                temporary.unlink()
        return True

    def remove(self, names: Sequence[str]) -> None:
        for number, name in enumerate(names):
            (self.path / name).unlink(missing_ok=True)
            if number == 0:
                _sync(self.path)  # what comes first must be gone first, a power failure notwithstanding
        with suppress(OSError):  # something is left that is not ours
            self.path.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
