"""The files that shards write: entries named `<tensor>|<first element>|<what>`.

What is "parameters", a state array of the rule, or "step". They are read in one of two ways: from front to
back with every byte checked on its way (`read_checked`), or tensor by tensor across all shards (`Pieces`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from shoal.errors import SnapshotError
from shoal.storage import tensors
from shoal.storage.damage import Damage
from shoal.storage.hashed import Progress, Reader, Writer, check, compare, fill, opened, quietly
from shoal.storage.manifest import File
from shoal.storage.pace import keep_pace
from shoal.storage.place import Place
from shoal.storage.tensors import Array, Entry

PARAMETERS = "parameters"
PUBLISHED = "published"  # what workers held of them, where they have a pull codec


class Key(NamedTuple):
    """What an entry is: a piece of this tensor from this element on."""

    tensor: str
    start: int
    what: str

    @property
    def entry(self) -> str:
        return f"{self.tensor}|{self.start}|{self.what}"

    @classmethod
    def of(cls, entry: str) -> Key:
        """ValueError for a name that Shoal does not write."""
        tensor, start, what = (["", "", *entry.rsplit("|", 2)])[-3:]
        if not start.isdecimal():
            raise ValueError(f"{entry!r} is not an entry that Shoal writes")
        return cls(tensor, int(start), what)


Entries = Mapping[tuple[str, int, str], npt.NDArray[Any]]  # (elements,) float32 each, "step" (1,) int64


def write_entries(writer: Writer, entries: Entries, metadata: Mapping[str, str]) -> None:
    """Write the entries of one shard, each from where it lies. The same entries give the same bytes."""
    arrays = {Key(*key).entry: array for key, array in entries.items()}
    places = tensors.in_order((name, array.dtype, array.shape) for name, array in arrays.items())
    writer.write(tensors.header(places, metadata))
    for item in places:
        writer.write(tensors.as_bytes(arrays[item.name]))


def entry_names(place: Place, file: File) -> set[str]:
    """The names of a file's entries (Damage or SnapshotError if its header cannot be read)."""
    try:
        with opened(place, file) as stream:
            return {entry.name for entry in _header(stream, file)}
    except ValueError as complaint:
        check(place, file)
        raise _unreadable(place, file, complaint) from None


def read_checked(
    place: Place, file: File, target_of: Callable[[Entry], Array | None], progress: Progress = quietly
) -> None:
    """Read a whole file, and check that what was read is what was written.

    target_of gives the array that an entry is read into, one of its shape and dtype, or None to pass over it.
    Damage if the file is not as it was written, and the arrays then hold anything; SnapshotErrors of
    target_of pass through where the file is well.
    """
    try:
        with opened(place, file) as stream:
            reader = Reader(stream, progress)
            for entry in tensors.read_header(reader.read_into, file.size_bytes):
                target = target_of(entry)
                if target is None:
                    reader.skip(entry.stop - entry.start)
                else:
                    reader.read_into(tensors.as_bytes(target))
    except Damage:
        raise
    except (ValueError, SnapshotError) as complaint:
        check(place, file)  # a damaged file may say anything: then the damage is the news
        if isinstance(complaint, SnapshotError):
            raise
        raise _unreadable(place, file, complaint) from None
    compare(place, file, reader)


class Pieces:
    """The arrays of a snapshot, tensor by tensor, whatever shards their pieces lie in.

    Sizes are checked, digests are not: who relies on the bytes checks the files before. Close it, or use `with`.
    """

    def __init__(self, place: Place, files: Sequence[File], once: bool = False) -> None:
        """once: as Place.open_once does."""
        self._place, self._once = place, once
        self._files = ExitStack()
        self._pieces: dict[tuple[str, str], list[tuple[int, BinaryIO, File, Entry]]] = {}
        try:
            for file in files:
                self._open(file)
        except BaseException:
            self._files.close()
            raise
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def kinds(self) -> list[tuple[str, str]]:
        """(tensor, what) of everything that is there."""
        return list(self._pieces)

    def of(self, tensor: str, what: str) -> Iterator[tuple[int, Array]]:
        """The pieces of one array in order: first element, elements. None if there is no such array."""
        for start, stream, file, entry in self._pieces.get((tensor, what), ()):
            array = np.empty(entry.shape, entry.dtype)
            try:
                stream.seek(entry.start)
                fill(stream, tensors.as_bytes(array))
            except (OSError, EOFError) as error:
                raise _unreadable(self._place, file, error) from None
            keep_pace()
            yield start, array

    def whole(self, tensor: str, what: str) -> Array:
        """All pieces of one array, one after the other."""
        pieces = [piece for _, piece in self.of(tensor, what)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def size_bytes(self, tensor: str, what: str) -> int:
        """Of all pieces of one array; 0 if there is no such array."""
        return sum(entry.stop - entry.start for _, _, _, entry in self._pieces.get((tensor, what), ()))

    def _open(self, file: File) -> None:
        stream = self._files.enter_context(opened(self._place, file, self._once))
        try:
            for entry in _header(stream, file):
                key = Key.of(entry.name)
                self._pieces.setdefault((key.tensor, key.what), []).append((key.start, stream, file, entry))
        except ValueError as complaint:
            raise _unreadable(self._place, file, complaint) from None


def _header(stream: BinaryIO, file: File) -> list[Entry]:
    return tensors.read_header(lambda target: fill(stream, target), file.size_bytes)


def _unreadable(place: Place, file: File, why: Exception) -> SnapshotError:
    return SnapshotError(f"{place.at(file.name)} cannot be read: {why}")
