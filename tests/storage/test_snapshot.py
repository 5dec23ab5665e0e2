"""A snapshot is whole or it is refused, by the name of the file that is at fault."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from shoal.errors import SnapshotError
from shoal.storage import snapshot
from shoal.storage.snapshot import Manifest
from shoal.vocabulary import PolicySpec, TableSpec, TensorSpec

SPEC = TableSpec(
    (TensorSpec("a", (2, 3), "bfloat16", 0), TensorSpec("b", (), "float32", 0)), "sgd", ((),), PolicySpec("sync")
)
A, B = np.arange(6, dtype=np.float32), np.float32([7])


def write(directory: Path, version: int = 5) -> None:
    """Two shards: half of `a`; the rest of it and `b`."""
    one = snapshot.write_shard(directory, 0, 2, version, SPEC, {("a", 0, "parameters"): A[:4]})
    two = snapshot.write_shard(
        directory,
        1,
        2,
        version,
        SPEC,
        {("a", 4, "parameters"): A[4:], ("b", 0, "parameters"): B, ("b", 0, "step"): np.array([3])},
    )
    snapshot.write_manifest(directory, "job", version, 4, (one, two), SPEC)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "made" / "on the way")
    found = snapshot.read_parameters(tmp_path / "made" / "on the way")
    np.testing.assert_array_equal(found["a"], A.reshape(2, 3))
    assert found["b"].shape == ()
    assert found["b"] == 7
    manifest = snapshot.read_manifest(tmp_path / "made" / "on the way")
    assert manifest == Manifest("job", 5, 4, 2, ("shard-0-of-2.safetensors", "shard-1-of-2.safetensors"), SPEC)
    step = np.zeros(1, np.int64)
    assert snapshot.read_into(tmp_path / "made" / "on the way", SPEC, {("b", 0, "step"): step}) == 5
    assert step.tolist() == [3]
    assert sorted(os.listdir(tmp_path / "made" / "on the way")) == [*["manifest.json"], *manifest.files], "nothing else"


def test_another_snapshot_over_the_first(tmp_path: Path) -> None:
    write(tmp_path, 5)
    write(tmp_path, 6)
    assert snapshot.read_manifest(tmp_path).version == 6
    assert snapshot.read_parameters(tmp_path)["b"] == 7


def test_a_directory_without_manifest_is_no_snapshot(tmp_path: Path) -> None:
    snapshot.write_shard(tmp_path, 0, 1, 5, SPEC, {("a", 0, "parameters"): A})
    with pytest.raises(
        SnapshotError, match=r"manifest\.json cannot be read .* is no snapshot, or its writing was cut short"
    ):
        snapshot.read_parameters(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    path = tmp_path / "shard-1-of-2.safetensors"
    match damage:
        case "truncate":
            path.write_bytes(path.read_bytes()[:-5])
        case "remove":
            path.unlink()
        case "garble":
            path.write_bytes(b"\xff" * 300)
    with pytest.raises(SnapshotError, match=r"shard-1-of-2\.safetensors cannot be read"):
        snapshot.read_parameters(tmp_path)


def test_shards_of_two_versions_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, 5)
    snapshot.write_shard(tmp_path, 0, 2, 6, SPEC, {("a", 0, "parameters"): A[:4]})
    with pytest.raises(SnapshotError, match=r"shard-0-of-2\.safetensors is of version 6, manifest\.json of 5"):
        snapshot.read_parameters(tmp_path)


def test_missing_elements_are_counted(tmp_path: Path) -> None:
    write(tmp_path)
    snapshot.write_shard(tmp_path, 0, 2, 5, SPEC, {("a", 0, "parameters"): A[:3]})
    with pytest.raises(SnapshotError, match="5 of the 6 elements of 'a' are there"):
        snapshot.read_parameters(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, r"is of format 99, this version of Shoal reads 1"),
        ({"version": "five"}, r"is not a manifest: .*\$\.version"),
        ({"files": ["../elsewhere.safetensors", "x"]}, r"names the files \['\.\./elsewhere"),
        ({"shards": 3}, r"for 3 shards"),
    ],
)
def test_a_strange_manifest_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | change))
    with pytest.raises(SnapshotError, match=message):
        snapshot.read_manifest(tmp_path)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SnapshotError, match=r"file/shard-0-of-1\.safetensors cannot be written"):
        snapshot.write_shard(tmp_path / "file", 0, 1, 5, SPEC, {("a", 0, "parameters"): A})
