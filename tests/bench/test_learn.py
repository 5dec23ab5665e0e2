"""`shoal bench learn` in a very short form: what methods come to in so few steps means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.learn import METHODS, Plan
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError

TEXT = "We hold these parameters to be self-evident.\n" * 200


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text"
    path.write_text(TEXT)
    return str(path)


@pytest.mark.slow
def test_a_row_for_each_method(text: str, tmp_path: Path) -> None:
    names = ("sync", "sync-int4", "diloco-h2")
    only = [part for name in names for part in ("--only", name)]
    sizes = ["--seeds", "1", "--steps", "6", "--workers", "2"]
    options = ["--text", text, *only, *sizes, "--json", str(tmp_path / "rows")]
    result = CliRunner().invoke(bench_app, ["learn", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows").read_text())}
    assert tuple(rows) == names
    for row in rows.values():
        assert row["seeds"] == [0] and 1 < row["val_loss"] < 5
        assert [run["bytes"] for run in row["runs"]] == [row["bytes"]]
    whole = rows["sync"]["bytes"]
    assert whole / rows["sync-int4"]["bytes"] > 4, "six steps, of which the first comes back whole"
    assert 1.8 < whole / rows["diloco-h2"]["bytes"] < 2.05


def test_what_cannot_be_measured_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--only mush: known are sync, sync-int8"):
        Plan(text, ("mush",)).check()
    with pytest.raises(ConfigurationError, match="--seeds 0 must be at least 1"):
        Plan(text, seeds=0).check()
    with pytest.raises(ConfigurationError, match="there is no such file"):
        Plan(text + "-").check()


def test_names_are_unlike() -> None:
    assert len({method.what for method in METHODS.values()}) == len(METHODS)
