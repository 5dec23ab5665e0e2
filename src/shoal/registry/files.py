"""The embedded registry's files: each is whole under its name, or not there, whenever the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import RegistryError
from shoal.registry.base import VALUE_BYTES_MAX

_HIDDEN = "+new"  # no key holds a '+', and no file of a key starts with one


def file_name(key: str) -> str:
    """The file that holds a key: "placement/3" and "placement" can both be there, as in etcd."""
    return key.replace("/", "+")


def placed(path: Path, content: bytes) -> None:
    """Put content under the name `path`, on disk before this returns. One caller at a time (OSError)."""
    hidden = path.with_name(_HIDDEN)
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    hidden.rename(path)
    synced(path.parent)


def synced(directory: Path) -> None:
    """Names in the directory are on disk when this returns (OSError)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes | None:
    """The content of the file, None where there is none (OSError, and RegistryError for one longer than any value)."""
    try:
        with path.open("rb") as file:
            content = file.read(VALUE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    if len(content) > VALUE_BYTES_MAX:
        raise RegistryError(f"{path} is longer than the {VALUE_BYTES_MAX} bytes that Shoal writes: remove it")
    return content


@contextmanager
def naming(name: str, key: str) -> Iterator[None]:
    """An error of the operating system inside becomes a RegistryError with the registry's name and the key."""
    try:
        yield
    except OSError as error:
        raise RegistryError(
            f"{name} cannot keep {key!r}: {error.strerror} ({error.filename}); make room, or mend the disk"
        ) from error
