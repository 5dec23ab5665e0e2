"""A snapshot is whole or it is refused, by the name of the file that is at fault."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec
import numpy as np
import pytest

from shoal.errors import SnapshotError
from shoal.storage import manifest as manifests
from shoal.storage import snapshot
from shoal.storage.manifest import File
from shoal.storage.shelf import verify

from .snapshots import SPEC, entries, model, resume, write

FILES = ("shard-0-of-2.safetensors", "shard-1-of-2.safetensors", "model.safetensors")
STATE = {"ledger": {"epoch": 3, "taken": [1, 2]}, "random": 2**127 + 1, "policy": "Sync()"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "on the way"
    write(directory, 5, state=STATE)
    manifest = snapshot.read_manifest(directory)
    assert (manifest.job, manifest.version, manifest.clock, manifest.shards) == ("job", 5, 10, 2)
    assert tuple(file.name for file in manifest.files) == FILES
    assert [file.size_bytes for file in manifest.files] == [(directory / name).stat().st_size for name in FILES]
    assert manifest.spec == SPEC
    assert manifest.state == STATE
    assert sorted(os.listdir(directory)) == sorted([*FILES, "manifest.json"]), "nothing else"
    found = snapshot.read_parameters(directory)
    for name, array in model().items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_it_resumes_on_another_number_of_shards(directory: Path, shards: int) -> None:
    write(directory, shards=3)
    for shard, found in enumerate(resume(directory, shards)):
        expected = entries(shard, shards)
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, strict=True)


def test_another_snapshot_over_the_first(directory: Path) -> None:
    write(directory, 5)
    write(directory, 6, seed=2)
    assert snapshot.read_manifest(directory).version == 6
    np.testing.assert_array_equal(snapshot.read_parameters(directory)["head.weight"], model(2)["head.weight"])


def test_a_directory_without_manifest_is_no_snapshot(tmp_path: Path) -> None:
    write(tmp_path / "old", 4)
    write(tmp_path / "cut off")
    (tmp_path / "cut off" / "manifest.json").unlink()
    with pytest.raises(
        SnapshotError,
        match=r"manifest\.json cannot be read .* is no snapshot, or its writing was cut short; "
        r"the one before it is whole: .*/old \(version 4, ",
    ):
        snapshot.read_parameters(tmp_path / "cut off")


def test_shards_of_two_versions_do_not_mix(directory: Path) -> None:
    write(directory, 5)
    snapshot.write_shard(directory, 0, 2, 6, SPEC, entries(0, 2, seed=2))
    with pytest.raises(SnapshotError, match=r"shard-0-of-2\.safetensors: a byte differs"):
        resume(directory, 1)
    receipts = [snapshot.write_shard(directory, shard, 2, 7, SPEC, entries(shard, 2)) for shard in range(2)]
    snapshot.write_shard(directory, 0, 2, 8, SPEC, entries(0, 2, seed=2))
    with pytest.raises(SnapshotError, match=r"shard-0-of-2\.safetensors: a byte differs"):
        snapshot.write_manifest(directory, "job", 7, 7, tuple(receipts), SPEC)


def test_no_manifest_for_what_is_not_all_there(directory: Path) -> None:
    held = entries(0, 1)
    del held["head.weight", 10, "parameters"]
    receipt = snapshot.write_shard(directory, 0, 1, 5, SPEC, held)
    with pytest.raises(SnapshotError, match=r"10 of the 24 elements of 'head.weight' are there"):
        snapshot.write_manifest(directory, "job", 5, 5, (receipt,), SPEC)
    assert os.listdir(directory) == ["shard-0-of-1.safetensors"]
    with pytest.raises(SnapshotError, match=r"shard-1-of-2.*is not here, though its server has written it: .*share"):
        snapshot.write_manifest(directory, "job", 5, 5, (File("shard-1-of-2.safetensors", 9, "").receipt,), SPEC)
    with pytest.raises(SnapshotError, match=r"manifest\.json cannot be written: .* object"):
        snapshot.write_manifest(directory, "job", 5, 5, (receipt,), SPEC, {"not": object()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, r"is of format 99, this version of Shoal reads 2"),
        ({"version": "five"}, r"is not a manifest: .*\$\.version"),
        ({"files": [{"name": "../x", "size_bytes": 1, "digest": ""}]}, r"names the files \['\.\./x'\] for 2 shards"),
        ({"shards": 3}, r"for 3 shards and the model"),
    ],
)
def test_a_strange_manifest_is_refused(directory: Path, change: dict[str, object], message: str) -> None:
    write(directory)
    path = directory / "manifest.json"
    found = msgspec.json.decode(path.read_bytes())
    path.write_bytes(manifests.seal(msgspec.json.format(msgspec.json.encode(found | change), indent=1)))
    with pytest.raises(SnapshotError, match=message):
        snapshot.read_manifest(directory)


def test_format_1_is_refused_by_its_name(directory: Path) -> None:
    directory.mkdir()
    (directory / "manifest.json").write_text('{"job": "job", "version": 5, "files": [], "format": 1}')
    with pytest.raises(SnapshotError, match=r"is of format 1, .* reads 2: only development versions .* read it"):
        snapshot.read_manifest(directory)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SnapshotError, match=r"file/shard-0-of-1\.safetensors cannot be written"):
        snapshot.write_shard(tmp_path / "file", 0, 1, 5, SPEC, entries(0, 1))


def test_an_unchanged_shard_is_stored_once(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)
    changed = entries(1, 2, seed=2)
    receipts = (
        snapshot.write_shard(tmp_path / "2", 0, 2, 2, SPEC, entries(0, 2)),
        snapshot.write_shard(tmp_path / "2", 1, 2, 2, SPEC, changed),
    )
    snapshot.write_manifest(tmp_path / "2", "job", 2, 2, receipts, SPEC)
    assert [(tmp_path / "2" / name).stat().st_nlink for name in FILES] == [2, 1, 1]
    assert (tmp_path / "1" / FILES[0]).samefile(tmp_path / "2" / FILES[0])
    write(tmp_path / "1", 3, seed=3)  # another one over the first leaves the second as it was
    assert verify(tmp_path / "2").version == 2


def test_a_damaged_file_is_not_linked(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)
    path = tmp_path / "1" / FILES[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    write(tmp_path / "2", 2)
    assert [(tmp_path / "2" / name).stat().st_nlink for name in FILES] == [1, 2, 1]


def test_a_full_disk_is_named_and_leaves_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "old", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(SnapshotError, match=r"new/shard-0-of-2\.safetensors cannot be written: .*File too large"):
            write(tmp_path / "new", 2, seed=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path / "new") == []
    verify(tmp_path / "old")
