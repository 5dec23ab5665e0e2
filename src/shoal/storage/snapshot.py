"""Snapshots on disk: what is read back is exactly what was written, on any number of servers.

A snapshot is a directory. Each shard writes `shard-<k>-of-<n>.safetensors`, whose entries are named
`<tensor>|<first element>|<what>`; what is "parameters", a state array of the rule, or "step". The
coordinator writes `manifest.json` last: without one, a directory is not a snapshot. Every file is
complete before it has its name (temporary file, fsync, rename).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shoal.errors import SnapshotError
from shoal.vocabulary import TableSpec

if TYPE_CHECKING:
    from shoal.kernel import Floats  # numba, which the command line must not wait for

FORMAT = 1
MANIFEST = "manifest.json"
PARAMETERS = "parameters"

Key = tuple[str, int, str]  # tensor, first element, what
Entries = Mapping[Key, npt.NDArray[Any]]  # (elements,) float32 each, "step" (1,) int64


class Manifest(msgspec.Struct, frozen=True):
    """What the files of a snapshot are together. files: by shard; version, clock: of the job then."""

    job: str
    version: int
    clock: int
    shards: int
    files: tuple[str, ...]
    spec: TableSpec
    format: int = FORMAT


def write_shard(directory: Path | str, shard: int, shards: int, version: int, spec: TableSpec, entries: Entries) -> str:
    """Write one shard's entries; returns the file's name (SnapshotError if it cannot be written)."""
    name = f"shard-{shard}-of-{shards}.safetensors"
    metadata = {
        "format": str(FORMAT),
        "shard": str(shard),
        "shards": str(shards),
        "version": str(version),
        "spec": msgspec.json.encode(spec).decode(),
    }
    with _replacing(Path(directory) / name) as temporary:
        save_file({_entry(key): array for key, array in entries.items()}, temporary, metadata)
    return name


def read_into(directory: Path | str, spec: TableSpec, entries: Entries) -> int:
    """Fill the arrays of `entries` from a snapshot, whatever number of shards wrote it.

    Returns the snapshot's version. SnapshotError if it is not of a table with these tensors and this
    rule, or if a file is missing, damaged, or of another version; the arrays are then half filled.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    _check_same_table(directory / MANIFEST, manifest.spec, spec)
    wanted = {_entry(key): array for key, array in entries.items()}
    for path, file in _open_shards(directory, manifest):
        for name in wanted.keys() & set(file.keys()):
            target, found = wanted.pop(name), file.get_tensor(name)
            if (found.shape, found.dtype) != (target.shape, target.dtype):
                raise SnapshotError(
                    f"{path}: {name} is {found.dtype} {found.shape}, this job needs {target.dtype} {target.shape}"
                )
            target[...] = found
    if wanted:
        raise SnapshotError(
            f"{directory}: none of its files holds {min(wanted)!r} ({len(wanted)} entries are missing); "
            f"resume with the settings of rule {manifest.spec.rule!r} that it was written with"
        )
    return manifest.version


def read_parameters(directory: Path | str) -> dict[str, Floats]:
    """The model's parameters by name, float32 in their shapes (SnapshotError as read_into)."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    flat = {tensor.name: np.empty(tensor.elements, np.float32) for tensor in manifest.spec.tensors}
    filled = dict.fromkeys(flat, 0)
    for path, file in _open_shards(directory, manifest):
        for entry in file.keys():  # noqa: SIM118 - a safetensors file is no dict
            tensor, start, what = _key(path, entry)
            if what != PARAMETERS:
                continue
            found = file.get_tensor(entry)
            if tensor not in flat or flat[tensor][start:][: found.size].shape != found.shape:
                raise SnapshotError(f"{path}: {entry} is no part of the table that {MANIFEST} describes")
            flat[tensor][start:][: found.size] = found
            filled[tensor] += found.size
    for item in manifest.spec.tensors:
        if filled[item.name] != item.elements:
            raise SnapshotError(
                f"{directory}: {filled[item.name]} of the {item.elements} elements of {item.name!r} are there"
            )
    return {tensor.name: flat[tensor.name].reshape(tensor.shape) for tensor in manifest.spec.tensors}


def write_manifest(
    directory: Path | str, job: str, version: int, clock: int, files: tuple[str, ...], spec: TableSpec
) -> None:
    """Make the files of all shards one snapshot (SnapshotError if the manifest cannot be written)."""
    manifest = Manifest(job, version, clock, len(files), files, spec)
    with _replacing(Path(directory) / MANIFEST) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def read_manifest(directory: Path | str) -> Manifest:
    """What `directory` holds (SnapshotError if it is no snapshot, or one of another format)."""
    path = Path(directory) / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SnapshotError(
            f"{path} cannot be read ({error.strerror}): {directory} is no snapshot, or its writing was cut short"
        ) from None
    try:
        found = msgspec.json.decode(text)
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise SnapshotError(f"{path} is of format {found.get('format')!r}, this version of Shoal reads {FORMAT}")
        manifest = msgspec.convert(found, Manifest)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"{path} is not a manifest: {error}") from None
    strange = [name for name in manifest.files if Path(name).name != name]
    if strange or len(manifest.files) != manifest.shards:
        raise SnapshotError(f"{path} names the files {list(manifest.files)} for {manifest.shards} shards")
    return manifest


def _entry(key: Key) -> str:
    tensor, start, what = key
    return f"{tensor}|{start}|{what}"


def _key(path: Path, entry: str) -> Key:
    try:
        tensor, start, what = entry.rsplit("|", 2)
        return tensor, int(start), what
    except ValueError:
        raise SnapshotError(f"{path}: {entry!r} is not an entry that Shoal writes") from None


def _check_same_table(path: Path, saved: TableSpec, wanted: TableSpec) -> None:
    """SnapshotError naming the first difference that matters; settings and dtypes may differ."""
    if saved.rule != wanted.rule:
        raise SnapshotError(f"{path}: the snapshot's rule is {saved.rule!r}, this job's is {wanted.rule!r}")
    if saved.block_elements_max != wanted.block_elements_max:
        raise SnapshotError(
            f"{path}: the snapshot's blocks have up to {saved.block_elements_max} elements, "
            f"this job's {wanted.block_elements_max}"
        )
    before = {tensor.name: tensor.shape for tensor in saved.tensors}
    now = {tensor.name: tensor.shape for tensor in wanted.tensors}
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            was, is_ = before.get(name, "absent"), now.get(name, "absent")
            raise SnapshotError(f"{path}: tensor {name!r} is {was} in the snapshot and {is_} in this job's model")


def _open_shards(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, Any]]:
    """Each shard's file, open; entries are read when asked for (SnapshotError naming a bad file)."""
    for name in manifest.files:
        path = directory / name
        try:
            with safe_open(path, framework="numpy") as file:
                version = (file.metadata() or {}).get("version")
                if version != str(manifest.version):
                    raise SnapshotError(f"{path} is of version {version}, {MANIFEST} of {manifest.version}")
                yield path, file
        except (OSError, SafetensorError) as error:
            raise SnapshotError(f"{path} cannot be read: {error}") from None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the name `path` once it is complete and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # the error that stopped the writing is the one to tell
            temporary.unlink()
        raise SnapshotError(f"{path} cannot be written: {error}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
