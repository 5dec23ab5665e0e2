"""One truncated or changed byte anywhere is found, and the file that it is in is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal.errors import SnapshotError
from shoal.storage import snapshot
from shoal.storage.shelf import verify

from .snapshots import resume, write

FILES = ("shard-0-of-2.safetensors", "shard-1-of-2.safetensors", "model.safetensors", "manifest.json")


def test_a_whole_one_verifies(directory: Path) -> None:
    write(directory)
    seen: list[int] = []
    manifest = verify(directory, seen.append)
    assert manifest.version == 5
    assert sum(seen) == manifest.size_bytes == sum((directory / name).stat().st_size for name in FILES[:3])


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_is_found(directory: Path, name: str) -> None:
    """One bit, in every 97th byte and in the last ones: verify finds it, and resuming does where it reads the file."""
    write(directory)
    path = directory / name
    good = path.read_bytes()
    for position in {*range(0, len(good), 97), *range(len(good) - 9, len(good))}:
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(SnapshotError, match=re.escape(str(path))):
            verify(directory)
        if name != "model.safetensors":
            for shards in (1, 2):
                with pytest.raises(SnapshotError, match=re.escape(str(path))):
                    resume(directory, shards)
    path.write_bytes(good)
    verify(directory)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found(directory: Path, name: str) -> None:
    write(directory)
    path = directory / name
    good = path.read_bytes()
    for size in {*range(0, len(good), 97), *range(len(good) - 9, len(good))}:
        path.write_bytes(good[:size])
        with pytest.raises(SnapshotError, match=re.escape(str(path))):
            verify(directory)
    path.write_bytes(good + b"\n")
    with pytest.raises(SnapshotError, match=re.escape(str(path))):
        verify(directory)


def test_the_message_says_what_is_wrong(directory: Path) -> None:
    write(directory)
    path = directory / FILES[1]
    good = path.read_bytes()
    size = f"{len(good):,}"
    for bad, message in (
        (good[:-5], f"is truncated: {len(good) - 5:,} of {size} bytes"),
        (good + b"x", f"is too long: {len(good) + 1:,} bytes where {size} were written"),
        (good[:-1] + bytes([good[-1] ^ 1]), r"a byte differs: its digest is [0-9a-f]{32}, manifest.json says [0-9a-f]"),
    ):
        path.write_bytes(bad)
        with pytest.raises(SnapshotError, match=message):
            verify(directory)
    path.unlink()
    with pytest.raises(SnapshotError, match="is missing"):
        verify(directory)


def test_what_is_refused_at_resume_comes_with_a_way_back(tmp_path: Path) -> None:
    for version in (10, 20, 30, 40):
        write(tmp_path / f"snapshot-{version}", version, seed=version)
    damaged = tmp_path / "snapshot-40"
    (damaged / FILES[0]).write_bytes(b"\xff" * 300)
    path = tmp_path / "snapshot-30" / FILES[2]  # of the same size, so only its bytes tell
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    message = r"snapshot-40/shard-0-of-2.* is truncated: .*whole: .*/snapshot-20 \(version 20, .*resume from that"
    with pytest.raises(SnapshotError, match=message):
        resume(damaged, 2)
    (damaged / FILES[3]).write_bytes(b"{}")
    with pytest.raises(SnapshotError, match=r"snapshot-40/manifest.json is not .*whole: .*/snapshot-20 \(version 20, "):
        snapshot.read_manifest(damaged)
    for version in (10, 20):
        (tmp_path / f"snapshot-{version}" / FILES[1]).unlink()
    with pytest.raises(SnapshotError, match="there is no other whole snapshot in"):
        resume(damaged, 2)
