"""`shoal bench straggler` in a very short form; the bars themselves are a slow test."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.orders import Done
from shoal.bench.rows import Row
from shoal.bench.straggler import CASES, Plan, rate, straggler
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError, JobError


def test_committed_samples_are_counted_over_the_time_they_took() -> None:
    steps = [Done(at, 10, at != 3.0) for at in (0.5, 1.0, 2.0, 3.0, 4.0, 9.0)]
    assert rate(steps, 1.0, 5.0) == 20 / 3  # those at 2 and 4, from the step at 1 to that at 4
    with pytest.raises(JobError, match="1 steps in the measured window"):
        rate(steps, 8.0, 10.0)


def test_one_policy_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.bench.straggler.straggler", partial(straggler, cases=CASES[2:3]))
    short = ("--workers", "2", "--batch", "8", "--seconds", "0.5", "--warmup", "0.2", "--alone", "0.2")
    result = CliRunner().invoke(
        bench_app, ["straggler", *short, "--json", str(tmp_path / "rows.json")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["policy"], row["peer"], row["ratio"]) == ("straggler", "Bounded(4)", None, None)
    assert row["own_speeds"][0] > 1.5 * row["own_speeds"][1]
    assert row["samples_per_second"] == pytest.approx(sum(row["speeds"]))
    assert row["contributions"] > 0
    assert row["bar_met"] in (True, False)
    assert "Bounded(4)" in result.output


@pytest.mark.slow
def test_policies_keep_what_they_promise() -> None:
    rows = {row.policy: row for row in straggler(Plan(), lambda *_: None)}
    assert rows["Bounded(4)"].share_of_all >= 0.9
    assert rows["Async()"].share_of_all >= 0.9
    assert rows["Sync(quorum=0.75)"].share_of_unslowed >= 0.9
    # Without the cure the slowed worker sets the pace.
    assert rows["Sync()"].share_of_all < 0.6
    assert rows["Bounded(4), fixed batch"].share_of_all < 0.6


@pytest.mark.parametrize(("fact", "value"), [("workers", 1), ("slow", 0.5), ("sample_ms", 0), ("seconds", 0.1)])
def test_what_cannot_be_measured_is_refused(fact: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"--{fact.replace('_', '-')} {value}"):
        Plan(**{fact: value}).check()
