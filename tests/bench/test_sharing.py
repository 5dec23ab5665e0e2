"""`shoal bench fleet` in a very short form; what it finds depends on who else uses this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.rows import Row
from shoal.bench.sharing import Plan
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError


@pytest.mark.slow
def test_two_jobs_end_to_end(tmp_path: Path) -> None:
    short = ("--params", "10K", "--seconds", "0.3", "--rounds", "1")
    result = CliRunner().invoke(
        bench_app, ["fleet", *short, "--json", str(tmp_path / "rows.json")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    one, two = json.loads((tmp_path / "rows.json").read_text())
    assert tuple(one)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (one["bench"], one["job"], two["job"], one["members"]) == ("fleet", "job one", "job two", 2)
    for row in (one, two):
        assert row["alone"] > 0 and row["together"] > 0
        assert row["of_half"] == pytest.approx(2 * row["together"] / row["alone"])
        assert row["bar_met"] == (row["of_half"] >= 0.9)
        assert row["job"] in result.output


@pytest.mark.parametrize("facts", [{"members": 0}, {"servers": 0}, {"rounds": 0}, {"seconds": 0.0}])
def test_what_cannot_be_measured_is_refused(facts: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"--{next(iter(facts))} 0 must be"):
        Plan(**facts).check()
