"""Two snapshots differ where their numbers do, whatever shards wrote them."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from shoal.storage import snapshot
from shoal.storage.comparison import Comparison, Difference, compare_snapshots
from shoal.vocabulary import TableSpec, TensorSpec

from .snapshots import SPEC, entries, write


def write_changed(directory: Path, spec: TableSpec = SPEC, **changes: float) -> None:
    """One shard; the last element of the entry "tensor|start|what" takes the value."""
    held = entries(0, 1)
    for name, value in changes.items():
        tensor, start, what = name.rsplit("|", 2)
        held[tensor, int(start), what][-1] = value
    receipt = snapshot.write_shard(directory, 0, 1, 6, spec, held)
    snapshot.write_manifest(directory, "job", 6, 6, (receipt,), spec)


def by_name(found: Comparison) -> dict[str, Difference]:
    return {item.tensor: item for item in found.tensors}


def test_the_same_on_other_shards_is_equal(tmp_path: Path) -> None:
    write(tmp_path / "a", 5, shards=3)
    write(tmp_path / "b", 6, shards=1)
    seen: list[int] = []
    found = compare_snapshots(tmp_path / "a", tmp_path / "b", seen.append)
    assert found.same
    assert found.versions == (5, 6)
    assert [item.verdict for item in found.tensors] == ["equal"] * len(SPEC.tensors)
    assert found.state == {"m": 0, "step": 0}
    assert sum(seen) > 0


def test_what_differs_is_measured(tmp_path: Path) -> None:
    write(tmp_path / "a")
    last = float(entries(0, 1)["head.weight", 20, "parameters"][-1])
    write_changed(tmp_path / "b", **{"head.weight|20|parameters": last + 0.5, "half|0|parameters": math.nan})
    found = compare_snapshots(tmp_path / "a", tmp_path / "b")
    assert not found.same
    assert not found.state_differs
    tensors = by_name(found)
    assert (tensors["head.weight"].verdict, tensors["head.weight"].changed) == ("differs", 1)
    np.testing.assert_allclose(tensors["head.weight"].largest, 0.5, rtol=1e-6)
    assert math.isnan(tensors["half"].largest or 0)
    assert tensors["wte.weight"] == Difference("wte.weight", "equal", 35, 0, 0.0)
    assert compare_snapshots(tmp_path / "b", tmp_path / "b").same, "a NaN equals itself"


def test_state_that_differs_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write_changed(tmp_path / "b", **{"head.weight|10|m": 9.0, "half|0|step": 8, "wte.weight|30|step": 8})
    found = compare_snapshots(tmp_path / "a", tmp_path / "b")
    assert [item.verdict for item in found.tensors] == ["equal"] * len(SPEC.tensors)
    assert found.state == {"m": 1, "step": 2}
    assert found.state_differs
    assert not found.same


def test_other_tensors_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a")
    turned, new = TensorSpec("wte.weight", (7, 5), "bfloat16", 0), TensorSpec("new", (24,), "float32", 0)
    others = (turned, *SPEC.tensors[1:4], new)
    held = {(("new" if key[0] == "head.weight" else key[0]), *key[1:]): array for key, array in entries(0, 1).items()}
    spec = msgspec.structs.replace(SPEC, tensors=others)
    receipt = snapshot.write_shard(tmp_path / "b", 0, 1, 6, spec, held)
    snapshot.write_manifest(tmp_path / "b", "job", 6, 6, (receipt,), spec)
    tensors = by_name(compare_snapshots(tmp_path / "a", tmp_path / "b"))
    assert {name: item.verdict for name, item in tensors.items() if item.verdict != "equal"} == {
        "wte.weight": "another shape",
        "head.weight": "missing in B",
        "new": "missing in A",
    }
