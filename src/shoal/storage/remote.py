"""A directory behind a URL, by fsspec: object stores, memory, other machines.

Objects are written under their own names; a snapshot's manifest comes last, so one that was cut off has none.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

import fsspec  # type: ignore[import-untyped]

from shoal.errors import ShoalError, SnapshotError
from shoal.storage.place import Place


class Remote:
    """path: within the file system."""

    def __init__(self, system: Any, path: str) -> None:
        self._system = system
        self._path = path.rstrip("/") or path

    @classmethod
    def at_url(cls, url: str) -> Remote:
        """SnapshotError if no file system for it is known or installed."""
        try:
            system, path = fsspec.core.url_to_fs(url)
        except Exception as error:  # noqa: BLE001 - each file system has its own, ImportError among them
            raise SnapshotError(f"{url} cannot be reached: {error}") from None
        return cls(system, path)

    def __str__(self) -> str:
        return str(self._system.unstrip_protocol(self._path))

    @property
    def name(self) -> str:
        return posixpath.basename(self._path)

    @property
    def parent(self) -> Place:
        return Remote(self._system, posixpath.dirname(self._path))

    def at(self, name: str) -> str:
        return f"{str(self).rstrip('/')}/{name}"

    def names(self) -> list[str]:
        return [posixpath.basename(item["name"]) for item in self._list() if item["type"] == "file"]

    def below(self) -> list[Place]:
        return [Remote(self._system, item["name"]) for item in self._list() if item["type"] == "directory"]

    def size_bytes(self, name: str) -> int:
        with self._telling(name):
            return int(self._system.size(self._full(name)))

    def modified(self, name: str) -> float:
        with suppress(Exception):  # few file systems can, and each fails in its own way
            return float(self._system.modified(self._full(name)).timestamp())
        return float("inf")

    def open(self, name: str) -> BinaryIO:
        with self._telling(name):
            return cast(BinaryIO, self._system.open(self._full(name), "rb"))

    def open_once(self, name: str) -> BinaryIO:
        return self.open(name)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        try:
            self._system.makedirs(self._path, exist_ok=True)
            file = self._system.open(self._full(name), "wb")
            try:
                yield file
                file.close()
            except BaseException:
                with suppress(Exception):  # closing may complete the object, so it is removed after that
                    file.close()
                with suppress(Exception):
                    self._system.rm_file(self._full(name))
                raise
        except ShoalError:
            raise
        except Exception as error:  # noqa: BLE001 - each file system has its own
            raise SnapshotError(f"{self.at(name)} cannot be written: {type(error).__name__}: {error}") from None

    def link(self, name: str, source: Place) -> bool:
        return False

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            with self._telling(name), suppress(FileNotFoundError):
                self._system.rm_file(self._full(name))
        with suppress(Exception):  # not empty, or no real directory: object stores have none
            self._system.rmdir(self._path)

    def _full(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def _list(self) -> list[dict[str, Any]]:
        self._system.invalidate_cache()  # others write there as well
        with self._telling(""):
            try:
                return sorted(self._system.ls(self._path, detail=True), key=lambda item: str(item["name"]))
            except (FileNotFoundError, NotADirectoryError):
                return []

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Errors of any file system as OSError."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - each file system has its own
            raise OSError(f"{self.at(name)}: {type(error).__name__}: {error}") from None
