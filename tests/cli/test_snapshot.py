"""`shoal snapshot`: what people and programs read of it, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from shoal.cli.main import app
from shoal.errors import ShoalError

from ..storage.snapshots import model, write


def shoal(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["snapshot", *map(str, arguments)])
    if isinstance(result.exception, ShoalError):
        return result  # main() makes one line and status 2 of it: tests/cli/test_main.py
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Two whole ones, one that was cut off, one truncated."""
    run = tmp_path / "run"
    for version in (1, 2, 3, 4):
        write(run / f"snapshot-{version}", version * 1000, seed=version)
    (run / "snapshot-3" / "manifest.json").unlink()
    (run / "snapshot-4" / "shard-1-of-2.safetensors").write_bytes(b"short")
    return run


def test_ls_shows_all_below(parent: Path) -> None:
    lines = shoal("ls", parent).stdout.splitlines()
    rows = {line.split()[0]: " ".join(line.split()) for line in lines if "snapshot-" in line}
    assert list(rows) == ["snapshot-1", "snapshot-2", "snapshot-3", "snapshot-4"]
    assert rows["snapshot-2"].startswith("snapshot-2 2,000 4,000 2 ")
    assert rows["snapshot-2"].endswith(" s whole")
    assert rows["snapshot-3"].endswith("incomplete: it has no manifest.json")
    assert "shard-1-of-2.safetensors is truncated: 5 of " in rows["snapshot-4"]


def test_ls_of_one_as_json(parent: Path) -> None:
    (found,) = [json.loads(line) for line in shoal("ls", parent / "snapshot-2", "--json").stdout.splitlines()]
    facts = {name: found[name] for name in ("directory", "job", "version", "clock", "shards", "whole", "wrong")}
    assert facts == {
        "directory": str(parent / "snapshot-2"),
        "job": "job",
        "version": 2000,
        "clock": 4000,
        "shards": 2,
        "whole": True,
        "wrong": "",
    }
    every = [json.loads(line) for line in shoal("ls", parent, "--json").stdout.splitlines()]
    assert [item["whole"] for item in every] == [True, True, False, False]
    assert every[2]["version"] is None


def test_verify_says_what_is_bad(parent: Path) -> None:
    good = shoal("verify", parent / "snapshot-1")
    assert "snapshot-1: every byte is as it was written (version 1,000, 3 files, " in good.stdout
    assert good.stderr == ""
    path = parent / "snapshot-1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    bad = shoal("verify", parent / "snapshot-1", status=1)
    assert bad.stdout == ""
    (line,) = bad.stderr.splitlines()
    assert line.startswith(f"shoal: bad snapshot: {path}: a byte differs: its digest is ")
    every = shoal("verify", parent, status=1)
    assert [Path(line.split(":")[0]).name for line in every.stdout.splitlines()] == ["snapshot-2"]
    assert len(every.stderr.splitlines()) == 3


def test_export_is_opened_by_torch(parent: Path, tmp_path: Path) -> None:
    told = shoal("export", parent / "snapshot-2", tmp_path / "mine.safetensors").stdout
    assert told == f"5 tensors of version 2,000: {tmp_path / 'mine.safetensors'}\n"
    held = load_file(tmp_path / "mine.safetensors")
    assert held["head.weight"].numpy().tobytes() == model(2)["head.weight"].tobytes()


def test_diff_tells_and_exits_with_1(parent: Path) -> None:
    told = " ".join(shoal("diff", parent / "snapshot-1", parent / "snapshot-2", status=1).stdout.split())
    assert "head.weight 24 24 " in told
    assert "5 tensors: 4 differ, 1 equal; largest difference " in told
    assert "optimizer state differs: m of 4 tensors" in told
    same = shoal("diff", parent / "snapshot-1", parent / "snapshot-1").stdout
    assert "optimizer state is equal" in same
    found = json.loads(shoal("diff", parent / "snapshot-1", parent / "snapshot-2", "--json", status=1).stdout)
    assert found["versions"] == [1000, 2000]
    assert (found["same"], found["state_differs"], found["state"]) == (False, True, {"m": 4, "step": 0})
    assert {item["tensor"]: item["verdict"] for item in found["tensors"]}["empty"] == "equal"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ls", "/nowhere"), "there is no snapshot at /nowhere"),
        (("verify", "/nowhere"), "there is no snapshot at /nowhere"),
        (("export", "/nowhere", "x.safetensors"), "/nowhere is no snapshot"),
        (("diff", "/nowhere", "/nowhere"), "/nowhere is no snapshot"),
        (("ls", "nosuch://x"), "nosuch://x cannot be reached"),
    ],
)
def test_misuse_is_one_clear_error(arguments: tuple[str, ...], words: str) -> None:
    error = shoal(*arguments).exception
    assert isinstance(error, ShoalError)
    assert words in str(error)
    assert "\n" not in str(error)


def test_an_export_that_is_not_safetensors_is_refused(parent: Path) -> None:
    error = shoal("export", parent / "snapshot-2", "model.pt").exception
    assert "the name must end in .safetensors, the only format there is" in str(error)
