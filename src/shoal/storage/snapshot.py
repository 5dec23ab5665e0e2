"""Snapshots: what is read back is exactly what was written, on any number of servers, or it is refused.

A snapshot is a directory (storage/place.py). Each shard writes `shard-<k>-of-<n>.safetensors`
(storage/shard_file.py). The coordinator reads them back, writes `model.safetensors` (storage/model.py), the workers'
`random.safetensors` and last of all `manifest.json` (storage/manifest.py): without one, a directory is not a snapshot.

Digests are of the bytes as they left memory. They are compared with what the files hold twice: before the
manifest is written, by reading everything back past the page cache, and whenever a file is read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from shoal.errors import SnapshotError
from shoal.storage import manifest as manifests
from shoal.storage import shelf, tensors
from shoal.storage.damage import Damage
from shoal.storage.hashed import Writer, check
from shoal.storage.manifest import FORMAT, LOST, MANIFEST, RANDOM, File, Manifest
from shoal.storage.model import write_model
from shoal.storage.place import Place, is_url, place
from shoal.storage.shard_file import (
    PARAMETERS,
    PUBLISHED,
    Entries,
    Key,
    Pieces,
    entry_names,
    read_checked,
    write_entries,
)
from shoal.storage.tensors import Array, Entry
from shoal.vocabulary import TableSpec

if TYPE_CHECKING:
    from shoal.kernel import Floats  # numba, which the command line must not wait for


def write_shard(directory: Path | str, shard: int, shards: int, version: int, spec: TableSpec, entries: Entries) -> str:
    """Write one shard's entries; returns the file's receipt for write_manifest: name, bytes, digest.

    Where the newest snapshot beside this one has the very same file, it is linked in place of being stored
    twice. SnapshotError if it cannot be written.
    """
    # No version in it: a shard that did not change writes the same bytes again.
    metadata = {
        "format": str(FORMAT),
        "shard": str(shard),
        "shards": str(shards),
        "spec": msgspec.json.encode(spec).decode(),
    }
    target, name = place(directory), f"shard-{shard}-of-{shards}.safetensors"
    before = None if is_url(directory) else shelf.previous(target)
    held = before.manifest.shard_files if before is not None and before.manifest is not None else ()
    try:
        with target.create(name) as file:
            writer = Writer(file)
            write_entries(writer, entries, metadata)
            written = writer.written(name)
            if written in held:
                raise _Unchanged
    except _Unchanged:
        if before is None or not _linked(target, written, before.place):
            with target.create(name) as file:
                write_entries(Writer(file), entries, metadata)
    return written.receipt


def write_manifest(
    directory: Path | str,
    job: str,
    version: int,
    clock: int,
    receipts: tuple[str, ...],
    spec: TableSpec,
    state: dict[str, Any] | None = None,
    random: Mapping[int, bytes] | None = None,
    lost: Sequence[str] = (),
) -> list[str]:
    """Make the files of all shards one snapshot. This takes as long as reading all of them.

    receipts: what write_shard returned, by shard. state: whatever else must be kept, as JSON can hold it.
    random: the random state of workers, by rank. lost: what write_lost returned, of each worker that could; returns
    the names of those that are not here, and so are left out.
    SnapshotError if a file is not there as its shard wrote it, or if something cannot be written.
    """
    target = place(directory)
    files = tuple(File.of_receipt(receipt) for receipt in receipts)
    try:
        msgspec.json.encode(state)
        there = target.names()
    except (TypeError, OSError) as error:
        raise SnapshotError(f"{target.at(MANIFEST)} cannot be written: {error}") from None
    for file in files:
        if file.name not in there:
            raise SnapshotError(
                f"{target.at(file.name)} is not here, though its server has written it: "
                "snapshots need a directory that all hosts share, or a URL"
            )
        check(target, file, once=True)
    others = [_write_random(target, random)] if random else []
    told = [File.of_receipt(receipt) for receipt in lost]
    others += [file for file in told if file.name in there]
    with Pieces(target, files, once=True) as pieces:
        others.append(write_model(target, pieces, spec))
    for file in others:
        check(target, file, once=True)
    manifest = Manifest(job, version, clock, len(files), (*files, *others), spec, state or {}, time.time())
    with target.create(MANIFEST) as out:
        out.write(manifests.encoded(manifest))
    manifests.read(target)
    return [file.name for file in told if file.name not in there]


def read_manifest(directory: Path | str) -> Manifest:
    """What `directory` holds (SnapshotError if it is no snapshot, is damaged, or is of another format).

    What is damaged is refused with the name of a whole snapshot beside it. The other files are not looked at.
    """
    where = place(directory)
    try:
        return manifests.read(where)
    except Damage as error:
        raise Damage(f"{error}; {shelf.way_back(where)}") from None


def read_into(directory: Path | str, spec: TableSpec, entries: Entries) -> int:
    """Fill the arrays of `entries` from a snapshot, whatever number of shards wrote it.

    Returns the snapshot's version. SnapshotError if it is not of a table with these tensors and this rule, or
    if a file that is needed is not as it was written; the arrays are then half filled.
    """
    where = place(directory)
    manifest = read_manifest(directory)
    _check_same_table(where.at(MANIFEST), manifest.spec, spec)
    copied = {tensor.name for tensor in manifest.spec.tensors if tensor.pull}
    lacking = [key for key in entries if key[2] == PUBLISHED and key[0] not in copied]
    try:
        _fill(where, manifest, {Key(*key).entry: array for key, array in entries.items() if key not in lacking})
    except Damage as error:
        raise Damage(f"{error}; {shelf.way_back(where, spec)}") from None
    for tensor, start, what in lacking:  # its workers held the parameters themselves
        entries[tensor, start, what][:] = entries[tensor, start, PARAMETERS]
    return manifest.version


def read_parameters(directory: Path | str) -> dict[str, Floats]:
    """The model's parameters by name, float32 in their shapes (SnapshotError as read_into)."""
    where = place(directory)
    manifest = read_manifest(directory)
    flat = {tensor.name: np.empty(tensor.elements, np.float32) for tensor in manifest.spec.tensors}
    filled = dict.fromkeys(flat, 0)

    def target_of(entry: Entry) -> Array | None:
        tensor, start, what = Key.of(entry.name)
        if what != PARAMETERS:
            return None
        count = int(np.prod(entry.shape))
        if tensor not in flat or entry.dtype != np.float32 or flat[tensor][start:][:count].shape != entry.shape:
            raise SnapshotError(f"{where}: {entry.name} is no part of the table that {MANIFEST} describes")
        filled[tensor] += count
        return flat[tensor][start:][:count]

    for file in manifest.shard_files:
        read_checked(where, file, target_of)
    for item in manifest.spec.tensors:
        if filled[item.name] != item.elements:
            raise SnapshotError(
                f"{where}: {filled[item.name]} of the {item.elements} elements of {item.name!r} are there"
            )
    return {tensor.name: flat[tensor.name].reshape(tensor.shape) for tensor in manifest.spec.tensors}


def write_lost(directory: Path | str, rank: int, arrays: Mapping[str, Floats]) -> str:
    """Write what the codecs of the worker of this rank have lost, by name; returns the file's receipt for
    write_manifest (SnapshotError if it cannot be written)."""
    return _write(place(directory), LOST.format(rank), arrays).receipt


def read_lost(directory: Path | str, rank: int) -> dict[str, Floats]:
    """What write_lost wrote; empty if the snapshot has nothing of this worker (SnapshotError as read_into)."""
    where = place(directory)
    file = read_manifest(directory).lost(rank)
    found: dict[str, Array] = {}

    def target_of(entry: Entry) -> Array:
        found[entry.name] = np.empty(entry.shape, entry.dtype)
        return found[entry.name]

    if file is not None:
        read_checked(where, file, target_of)
    return found


def read_random(directory: Path | str, rank: int) -> bytes | None:
    """The random state of the worker of this rank; None if the snapshot has none (SnapshotError as read_into)."""
    where = place(directory)
    file = read_manifest(directory).random
    found: list[Array] = []

    def target_of(entry: Entry) -> Array | None:
        if entry.name != str(rank):
            return None
        found.append(np.empty(entry.shape, entry.dtype))
        return found[-1]

    if file is not None:
        read_checked(where, file, target_of)
    return found[0].tobytes() if found else None


def _write_random(target: Place, random: Mapping[int, bytes]) -> File:
    """One array of bytes a worker, named by its rank."""
    return _write(target, RANDOM, {str(rank): np.frombuffer(state, np.uint8) for rank, state in sorted(random.items())})


def _write(target: Place, name: str, arrays: Mapping[str, Array]) -> File:
    with target.create(name) as file:
        writer = Writer(file)
        places = tensors.in_order((name, array.dtype, array.shape) for name, array in arrays.items())
        writer.write(tensors.header(places, {}))
        for item in places:
            writer.write(tensors.as_bytes(arrays[item.name]))
    return writer.written(name)


class _Unchanged(Exception):
    """The file that is being written is there already."""


def _linked(target: Place, file: File, source: Place) -> bool:
    """Whether the file of an earlier snapshot, still as it was written, is now this one's too."""
    try:
        check(source, file)
    except Damage:
        return False
    return target.link(file.name, source)


def _fill(where: Place, manifest: Manifest, wanted: dict[str, Array]) -> None:
    """Read what is wanted from the files that hold it; empties `wanted`."""
    for file in manifest.shard_files:
        if not wanted.keys().isdisjoint(entry_names(where, file)):
            read_checked(where, file, lambda entry: _target(where, entry, wanted))
    if wanted:
        for file in manifest.shard_files:
            check(where, file)  # a changed name would hide an entry
        raise SnapshotError(
            f"{where}: none of its files holds {min(wanted)!r} ({len(wanted)} entries are missing); "
            f"resume with the settings of rule {manifest.spec.rule!r} that it was written with"
        )


def _target(where: Place, entry: Entry, wanted: dict[str, Array]) -> Array | None:
    target = wanted.pop(entry.name, None)
    if target is not None and (entry.shape, entry.dtype) != (target.shape, target.dtype):
        raise SnapshotError(
            f"{where}: {entry.name} is {entry.dtype} {entry.shape}, this job needs {target.dtype} {target.shape}"
        )
    return target


def _check_same_table(path: str, saved: TableSpec, wanted: TableSpec) -> None:
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
