"""The snapshots below one directory, oldest first: which are whole, which can go, which to go back to.

Whole means here: the manifest is as it was written, and each file has its size. Whether each byte is right
only `check` tells, as it must read them all.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shoal.errors import ConfigurationError, SnapshotError
from shoal.storage import manifest as manifests
from shoal.storage.damage import Damage
from shoal.storage.hashed import Progress, check, opened, quietly
from shoal.storage.manifest import MANIFEST, Manifest
from shoal.storage.place import Place, place
from shoal.vocabulary import TableSpec

_OURS = re.compile(
    r"\.?(shard-\d+-of-\d+\.safetensors|(model|random|lost-\d+)\.safetensors|manifest\.json)(\.[\w.]+\.tmp)?"
)
_SHARD = re.compile(r"\.?shard-\d+-of-\d+\.safetensors(\.[\w.]+\.tmp)?")


@dataclass(frozen=True)
class Found:
    """A directory that is a snapshot or was to become one. wrong: what is; "" if it is whole.

    written: when its last file was, in seconds since 1970. size_bytes: of its files, as far as they are known.
    """

    place: Place
    manifest: Manifest | None
    wrong: str
    written: float
    size_bytes: int

    @property
    def whole(self) -> bool:
        return not self.wrong

    @property
    def age(self) -> tuple[float, int]:
        """Sorts the older before the newer."""
        return self.written, self.manifest.version if self.manifest is not None else 0


def look(at: Place) -> Found | None:
    """What a directory is; None if there is nothing of a snapshot in it."""
    names = at.names()
    if MANIFEST not in names and not any(_SHARD.fullmatch(name) for name in names):
        return None
    if MANIFEST not in names:
        return Found(at, None, f"incomplete: it has no {MANIFEST}", *_as_they_lie(at, names))
    try:
        manifest = manifests.read(at)
    except SnapshotError as error:
        return Found(at, None, str(error), *_as_they_lie(at, names))
    try:
        for file in manifest.files:
            with opened(at, file):
                pass
    except Damage as error:
        return Found(at, manifest, str(error), manifest.written, manifest.size_bytes)
    return Found(at, manifest, "", manifest.written, manifest.size_bytes)


def snapshots(parent: Place) -> list[Found]:
    """What of snapshots lies directly below `parent`, oldest first."""
    found = []
    for item in parent.below():
        with suppress(PermissionError):  # somebody else's
            found.append(look(item))
    return sorted((item for item in found if item is not None), key=lambda item: item.age)


def find(directory: Path | str) -> list[Found]:
    """The snapshot that `directory` is, or those below it (ConfigurationError if there are none)."""
    where = place(directory)
    try:
        itself = look(where)
        found = [itself] if itself is not None else snapshots(where)
    except OSError as error:
        raise SnapshotError(f"{directory} cannot be read: {error}") from None
    if not found:
        raise ConfigurationError(f"there is no snapshot at {directory}, and none directly below it")
    return found


def verify(directory: Path | str, progress: Progress = quietly) -> Manifest:
    """Read every byte of a snapshot; returns its manifest.

    Damage names the first file that is not as it was written, and says what is wrong with it.
    """
    where = place(directory)
    manifest = manifests.read(where)
    for file in manifest.files:
        check(where, file, progress)
    return manifest


def previous(to: Place) -> Found | None:
    """The newest whole snapshot beside this one, if there is any."""
    try:
        beside = [item for item in snapshots(to.parent) if item.whole and item.place.name != to.name]
    except OSError:  # the directory may be one that others do not read
        return None
    return beside[-1] if beside else None


def way_back(damaged: Place, spec: TableSpec | None = None) -> str:
    """In words: the newest snapshot beside a damaged one that verifies, and holds the tensors of `spec`."""
    try:
        beside = snapshots(damaged.parent)
    except OSError as error:
        return f"what lies beside it cannot be read: {error}"
    for item in reversed(beside):
        manifest = item.manifest
        if manifest is None or item.place.name == damaged.name:
            continue
        if spec is not None and not _alike(manifest.spec, spec):
            continue
        try:
            for file in manifest.files:
                check(item.place, file)
        except Damage:
            continue
        ago = f"{max(0.0, time.time() - manifest.written) / 60:,.0f} minutes ago"
        return f"the one before it is whole: {item.place} (version {manifest.version}, written {ago}); resume from that"
    return f"there is no other whole snapshot in {damaged.parent}"


def prune(parent: Place | Path | str, keep: int) -> list[str]:
    """Remove all but the `keep` newest whole snapshots directly below `parent`; returns what was removed.

    What was cut off before the newest whole one was begun goes too. What is damaged is neither counted nor removed: a
    person should see it. The manifest goes first, so a half-removed snapshot is none.
    """
    if keep < 1:
        raise ConfigurationError(f"keep={keep} must be 1 or more: the newest snapshot always stays")
    try:
        removed = _superfluous(snapshots(place(parent) if isinstance(parent, Path | str) else parent), keep)
        for item in removed:
            ours = sorted(name for name in item.place.names() if name != MANIFEST and _OURS.fullmatch(name))
            item.place.remove([MANIFEST, *ours])
    except OSError as error:
        raise SnapshotError(f"old snapshots in {parent} cannot be removed: {error}") from None
    return [str(item.place) for item in removed]


def _superfluous(found: list[Found], keep: int) -> list[Found]:
    whole = [item for item in found if item.whole]
    if not whole or whole[-1].manifest is None:
        return []
    newest = whole[-1]
    began = min(newest.place.modified(file.name) for file in whole[-1].manifest.files)
    return [item for item in found if _cut_off(item) and item.written < began] + whole[:-keep]


def _as_they_lie(at: Place, names: list[str]) -> tuple[float, int]:
    """When the last of these files was written, and the bytes of all."""
    written, size_bytes = 0.0, 0
    for name in names:
        with suppress(FileNotFoundError):  # another process writes here, and has renamed it
            written, size_bytes = max(written, at.modified(name)), size_bytes + at.size_bytes(name)
    return written, size_bytes


def _cut_off(item: Found) -> bool:
    """Whether a snapshot was never completed, and nothing of anybody else's lies with it."""
    names = item.place.names()
    return MANIFEST not in names and not item.place.below() and all(map(_OURS.fullmatch, names))


def _alike(one: TableSpec, other: TableSpec) -> bool:
    """Whether one table's snapshot may be resumed by the other."""
    return one.rule == other.rule and {(item.name, item.shape) for item in one.tensors} == {
        (item.name, item.shape) for item in other.tensors
    }
