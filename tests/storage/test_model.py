"""model.safetensors is an ordinary file: torch opens it, and finds what the servers held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from shoal.codec.codec import codec_for
from shoal.errors import ConfigurationError, SnapshotError
from shoal.storage.model import export
from shoal.vocabulary import TableSpec

from .snapshots import SPEC, model, write

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(path: Path, spec: TableSpec = SPEC) -> None:
    found = load_file(path)
    assert found.keys() == {item.name for item in spec.tensors}
    for item in spec.tensors:
        expected = torch.from_numpy(model()[item.name]).to(DTYPES[item.dtype])
        assert found[item.name].shape == item.shape
        assert found[item.name].dtype == expected.dtype
        assert torch.equal(found[item.name], expected), item.name


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_torch_opens_it(directory: Path, shards: int) -> None:
    write(directory, shards=shards)
    check(directory / "model.safetensors")
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}, "what transformers asks for"


def test_safetensors_opens_the_shards(directory: Path) -> None:
    write(directory)
    held = load_file(directory / "shard-0-of-2.safetensors") | load_file(directory / "shard-1-of-2.safetensors")
    assert held["head.weight|10|step"].tolist() == [7]
    assert torch.equal(held["head.weight|10|parameters"] * 2, held["head.weight|10|m"])


def test_halves_are_what_workers_hold(directory: Path) -> None:
    """The same rounding as on the wire."""
    write(directory)
    found = load_file(directory / "model.safetensors")
    for name, dtype in (("wte.weight", "bfloat16"), ("half", "float16")):
        codec = codec_for(dtype)
        masters = model()[name].reshape(-1)
        wire = torch.empty(masters.size, dtype=DTYPES[dtype])
        codec.encode(wire.view(torch.uint8).numpy().view(codec.item), masters)
        assert torch.equal(found[name].reshape(-1), wire)


def test_export_to_a_file_and_into_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "one")
    assert export(tmp_path / "one", tmp_path / "mine.safetensors") == str(tmp_path / "mine.safetensors")
    check(tmp_path / "mine.safetensors")
    (tmp_path / "out").mkdir()
    export(tmp_path / "one", tmp_path / "out")
    check(tmp_path / "out" / "model.safetensors")


def test_export_refuses_what_is_damaged_or_would_destroy(tmp_path: Path) -> None:
    write(tmp_path / "one")
    with pytest.raises(ConfigurationError, match=r"must end in \.safetensors"):
        export(tmp_path / "one", tmp_path / "model.pt")
    with pytest.raises(ConfigurationError, match=r"model\.safetensors: it exists"):
        export(tmp_path / "one", tmp_path / "one")
    path = tmp_path / "one" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(SnapshotError, match=r"model\.safetensors: a byte differs"):
        export(tmp_path / "one", tmp_path / "mine.safetensors")
    assert not (tmp_path / "mine.safetensors").exists()
