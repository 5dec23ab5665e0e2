"""`shoal bench scale`, end to end in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.rows import Row
from shoal.bench.scale import Plan
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError

SMALL = ("--params", "1000", "--steps", "2", "--warmup", "2", "--rounds", "1")


@pytest.mark.slow
def test_a_row_for_each_pair(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    arguments = ["scale", *SMALL, "--workers", "1", "--servers", "1,2", "--connections", "5", "--json", str(path)]
    result = CliRunner().invoke(bench_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "5 idle connections" in result.output
    *rows, crowded = json.loads(path.read_text())
    assert tuple(crowded)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (crowded["bench"], crowded["workers"], crowded["idle"]["connections"]) == ("scale", 6, 5)
    assert [(row["bench"], row["workers"], row["servers"]) for row in rows] == [("scale", 1, 1), ("scale", 1, 2)]
    for row in rows:
        assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
        assert (row["peer"], row["ratio"], row["seconds"]["samples"]) == (None, None, 2)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--servers 0 must be at least 1"):
        Plan(workers=(1, 2), servers=(1, 0)).check()
    result = CliRunner().invoke(bench_app, ["scale", "--workers", "one"])
    assert isinstance(result.exception, ConfigurationError)
    assert "--workers 'one' is no list of numbers" in str(result.exception)
