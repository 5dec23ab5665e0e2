"""Files whose bytes are digested as they pass, and files that are checked against what they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import xxhash

from shoal.storage.damage import Damage
from shoal.storage.manifest import MANIFEST, File
from shoal.storage.pace import keep_pace
from shoal.storage.place import Place

CHUNK_BYTES = 4 << 20

Progress = Callable[[int], None]  # told how many further bytes are done


def quietly(_: int) -> None:
    """A Progress that tells nobody."""


class Writer:
    """Passes bytes on to a file, and knows what came through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = xxhash.xxh3_128()
        self._size_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """data: contiguous bytes."""
        self._file.write(data)
        self._digest.update(data)
        self._size_bytes += len(data)
        keep_pace()

    def written(self, name: str) -> File:
        """What the file is by now, as the manifest will describe it."""
        return File(name, self._size_bytes, self._digest.hexdigest())


class Reader:
    """Reads a file from front to back, and knows what came through."""

    def __init__(self, file: BinaryIO, progress: Progress = quietly) -> None:
        self._file = file
        self._progress = progress
        self._digest = xxhash.xxh3_128()
        self._scratch = memoryview(bytearray(CHUNK_BYTES))

    def read_into(self, target: memoryview) -> None:
        """Fill all of `target`, contiguous bytes (EOFError if the file ends before)."""
        for start in range(0, len(target), CHUNK_BYTES):
            piece = target[start : start + CHUNK_BYTES]
            fill(self._file, piece)
            self._digest.update(piece)
            self._progress(len(piece))
            keep_pace()

    def skip(self, count: int) -> None:
        """Read `count` bytes and forget them."""
        while count:
            piece = self._scratch[: min(count, CHUNK_BYTES)]
            self.read_into(piece)
            count -= len(piece)

    def digest(self) -> str:
        return self._digest.hexdigest()


def fill(file: BinaryIO, target: memoryview) -> None:
    """Fill all of `target` from where the file stands (EOFError if it ends before)."""
    while len(target):
        count = file.readinto(target)  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"the file ends {len(target):,} bytes before its time")
        target = target[count:]


@contextmanager
def opened(place: Place, file: File, once: bool = False) -> Iterator[BinaryIO]:
    """A file of a snapshot, open, once its size is known to be right (Damage if not, or if reading it fails).

    once: as Place.open_once does.
    """
    path = place.at(file.name)
    try:
        found = place.size_bytes(file.name)
        if found < file.size_bytes:
            raise Damage(f"{path} is truncated: {found:,} of {file.size_bytes:,} bytes")
        if found > file.size_bytes:
            raise Damage(f"{path} is too long: {found:,} bytes where {file.size_bytes:,} were written")
        with place.open_once(file.name) if once else place.open(file.name) as stream:
            yield stream
    except FileNotFoundError:
        raise Damage(f"{path} is missing") from None
    except (OSError, EOFError) as error:
        raise Damage(f"{path} cannot be read: {error}") from None


def check(place: Place, file: File, progress: Progress = quietly, once: bool = False) -> None:
    """Read a file and compare its size and digest with what was written (Damage if they differ). once: as in opened."""
    with opened(place, file, once) as stream:
        reader = Reader(stream, progress)
        reader.skip(file.size_bytes)
    compare(place, file, reader)


def compare(place: Place, file: File, reader: Reader) -> None:
    """Damage unless the whole file that came through `reader` is what was written."""
    if reader.digest() != file.digest:
        raise Damage(
            f"{place.at(file.name)}: a byte differs: its digest is {reader.digest()}, {MANIFEST} says {file.digest}"
        )
