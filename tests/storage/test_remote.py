"""Whatever fsspec reaches holds snapshots as a directory does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from shoal.errors import SnapshotError
from shoal.storage import snapshot
from shoal.storage.comparison import compare_snapshots
from shoal.storage.model import export
from shoal.storage.shelf import find, prune, verify

from .snapshots import SPEC, entries, model, resume, write


@pytest.fixture(params=["memory", "file"])
def parent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/run"
        return
    yield "memory://bucket/run"
    fsspec.filesystem("memory").store.clear()


def spoil(url: str) -> None:
    """Change the last byte."""
    with fsspec.open(url, "rb") as file:
        good = file.read()
    with fsspec.open(url, "wb") as file:
        file.write(good[:-1] + bytes([good[-1] ^ 1]))


def test_written_there_and_read_from_there(parent: str) -> None:
    write(f"{parent}/one", 5, state={"ledger": 1})
    assert verify(f"{parent}/one").state == {"ledger": 1}
    np.testing.assert_array_equal(snapshot.read_parameters(f"{parent}/one")["wte.weight"], model()["wte.weight"])
    for shards in (1, 3):
        for shard, found in enumerate(resume(f"{parent}/one", shards)):
            for key, array in entries(shard, shards).items():
                np.testing.assert_array_equal(found[key], array, strict=True)


def test_damage_is_found_and_the_one_before_is_offered(parent: str) -> None:
    write(f"{parent}/one", 1, seed=1)
    write(f"{parent}/two", 2, seed=2)
    spoil(f"{parent}/two/shard-1-of-2.safetensors")
    with pytest.raises(SnapshotError, match=r"two/shard-1-of-2\.safetensors: a byte differs"):
        verify(f"{parent}/two")
    with pytest.raises(SnapshotError, match=r"a byte differs.*; the one before it is whole: .*run/one \(version 1, "):
        resume(f"{parent}/two", 1)


def test_listed_pruned_compared_exported(parent: str, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write(f"{parent}/{version}", version, seed=version)
    assert [(item.place.name, item.wrong) for item in find(parent)] == [("1", ""), ("2", ""), ("3", "")]
    assert compare_snapshots(f"{parent}/1", f"{parent}/1").same
    assert not compare_snapshots(f"{parent}/1", f"{parent}/2").same
    assert len(prune(parent, keep=1)) == 2
    assert [item.place.name for item in find(parent)] == ["3"]
    export(f"{parent}/3", tmp_path / "m.safetensors")
    assert export(f"{parent}/3", f"{parent}/m.safetensors").endswith("/run/m.safetensors")


def test_what_cannot_be_written_leaves_nothing(parent: str) -> None:
    held = entries(0, 1)
    del held["half", 0, "parameters"]
    receipt = snapshot.write_shard(f"{parent}/one", 0, 1, 5, SPEC, held)
    with pytest.raises(SnapshotError, match="0 of the 3 elements of 'half'"):
        snapshot.write_manifest(f"{parent}/one", "job", 5, 5, (receipt,), SPEC)
    (found,) = find(f"{parent}/one")
    assert found.wrong == "incomplete: it has no manifest.json"
    assert found.place.names() == ["shard-0-of-1.safetensors"]


def test_an_unknown_scheme_is_one_clear_error() -> None:
    with pytest.raises(SnapshotError, match=r"nosuch://x/y cannot be reached: Protocol not known"):
        verify("nosuch://x/y")


def test_a_path_needs_no_fsspec(tmp_path: Path) -> None:
    program = f"""
import sys
from shoal.storage import snapshot
from shoal.vocabulary import PolicySpec, TableSpec
snapshot.write_manifest({str(tmp_path)!r}, "job", 1, 1, (), TableSpec((), "sgd", (), PolicySpec("sync")))
assert snapshot.read_manifest({str(tmp_path)!r}).version == 1
heavy = {{"fsspec", "torch", "numba"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
