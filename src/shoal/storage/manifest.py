"""The manifest of a snapshot: what its files are, and how each byte of them, and of itself, can be checked.

It is JSON that people may read. Its last field is the digest of all the text before that field, so a changed
byte shows, wherever it is.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import xxhash

from shoal.errors import SnapshotError
from shoal.storage.damage import Damage
from shoal.storage.place import Place
from shoal.vocabulary import TableSpec

FORMAT = 2
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
RANDOM = "random.safetensors"
LOST = "lost-{}.safetensors"  # of the worker of this rank
_LOST = re.compile(r"lost-\d+\.safetensors")

_MARK, _END = b',\n "digest": "', b'"\n}\n'


class File(msgspec.Struct, frozen=True):
    """One file of a snapshot. digest: xxh3_128 of its bytes, in hexadecimal."""

    name: str
    size_bytes: int
    digest: str

    @property
    def receipt(self) -> str:
        """All of it on one line: how a shard tells the coordinator what it wrote."""
        return f"{self.name} {self.size_bytes} {self.digest}"

    @classmethod
    def of_receipt(cls, receipt: str) -> File:
        """SnapshotError if it is none."""
        try:
            name, size, digest = receipt.rsplit(" ", 2)
            return cls(name, int(size), digest)
        except ValueError:
            raise SnapshotError(f"{receipt!r} is not what write_shard returns: name, bytes and digest") from None


class Manifest(msgspec.Struct, frozen=True):
    """What the files of a snapshot are together.

    files: the shards' in order, that of the workers' random states if there are any, those of what their codecs have
    lost, the model's. version, clock:
    of the job then. state: whatever else the job keeps, as its coordinator gave it. written: when, in seconds since
    1970.
    """

    job: str
    version: int
    clock: int
    shards: int
    files: tuple[File, ...]
    spec: TableSpec
    state: dict[str, Any] = {}
    written: float = 0.0
    format: int = FORMAT

    @property
    def shard_files(self) -> tuple[File, ...]:
        return self.files[: self.shards]

    @property
    def model(self) -> File:
        return self.files[-1]

    @property
    def random(self) -> File | None:
        """The workers' random states."""
        return self._of_workers(RANDOM)

    def lost(self, rank: int) -> File | None:
        """What the codecs of the worker of this rank have lost."""
        return self._of_workers(LOST.format(rank))

    def _of_workers(self, name: str) -> File | None:
        return next((file for file in self.files[self.shards : -1] if file.name == name), None)

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)


def encoded(manifest: Manifest) -> bytes:
    """The manifest as its file holds it (TypeError for a state that JSON cannot hold)."""
    return seal(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def seal(text: bytes) -> bytes:
    """JSON that msgspec has formatted with indent 1, with its digest as the last field."""
    body = text.rstrip().removesuffix(b"\n}")
    return body + _MARK + xxhash.xxh3_128_hexdigest(body).encode() + _END


def read(place: Place) -> Manifest:
    """What a place holds: Damage if it is no whole manifest, SnapshotError if it is of another format."""
    path = place.at(MANIFEST)
    try:
        with place.open(MANIFEST) as file:
            text = file.read()
    except OSError as error:
        raise Damage(
            f"{path} cannot be read ({error.strerror or error}): {place} is no snapshot, or its writing was cut short"
        ) from None
    body, _, rest = text.rpartition(_MARK)
    if rest != xxhash.xxh3_128_hexdigest(body).encode() + _END:
        _refuse_older(path, text)
        raise Damage(f"{path} is not as it was written: its {len(text):,} bytes do not have the digest they end with")
    try:
        found = msgspec.json.decode(text)
        if found.get("format") != FORMAT:
            raise SnapshotError(
                f"{path} is of format {found.get('format')!r}, this version of Shoal reads {FORMAT}: "
                "read it with the version that wrote it"
            )
        manifest = msgspec.convert(found, Manifest)
    except (msgspec.MsgspecError, AttributeError) as error:
        raise SnapshotError(f"{path} is not a manifest: {error}") from None
    names = [file.name for file in manifest.files]
    strange = len(set(names)) < len(names) or any("/" in name or name in (".", "..") for name in names)
    others = [name for name in names[manifest.shards :] if not _LOST.fullmatch(name)]
    if strange or others not in ([MODEL], [RANDOM, MODEL]) or names[-1] != MODEL:
        raise SnapshotError(f"{path} names the files {names} for {manifest.shards} shards and the model")
    return manifest


def _refuse_older(path: str, text: bytes) -> None:
    """SnapshotError for a manifest of format 1, which had no digest."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    if isinstance(found, dict) and found.get("format") == 1:
        raise SnapshotError(
            f"{path} is of format 1, this version of Shoal reads {FORMAT}: "
            "only development versions up to commit 657dc61 read it; resume it there, or train anew"
        )
