"""`shoal bench replication` in a very short form; what it finds depends on who else uses this machine."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.orders import Shard
from shoal.bench.replication import Plan
from shoal.bench.replication_pass import filled, pass_over
from shoal.bench.rows import Row
from shoal.bench.verdict import WrongResultError, same
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError


@pytest.mark.slow
def test_two_jobs_and_a_pass_end_to_end(tmp_path: Path) -> None:
    short = ("--params", "10K", "--steps", "4", "--warmup", "2", "--rounds", "2")
    result = CliRunner().invoke(
        bench_app, ["replication", *short, "--json", str(tmp_path / "rows.json")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["workers"], row["servers"], row["replicas"]) == ("replication", 2, 1, 2)
    kinds = (("seconds", "step_seconds"), ("plain", "plain_step_seconds"), ("one_pass", "one_pass_seconds"))
    medians = []
    for summary, samples in kinds:
        assert row[summary]["samples"] == len(row[samples]) == 4
        assert row[summary]["median"] == pytest.approx(statistics.median(row[samples]))
        medians.append(row[summary]["median"])
    assert row["added_seconds"] == pytest.approx(medians[0] - medians[1])
    assert row["added_passes"] == pytest.approx(row["added_seconds"] / medians[2])
    assert row["bar_met"] == (row["added_passes"] <= row["bar"])
    assert row["steps_checked"] == 2 + 4 + 2  # one a turn is not counted
    assert len(row["digest"]) == 64
    assert row["difference"] <= row["tolerance"]
    assert row["server_bytes"] > row["plain_server_bytes"] > 0
    assert "the same bits" in result.output


def test_a_pass_changes_all_parameters() -> None:
    store = filled(Shard(name="p", params=10_000, optimizer="adamw", shared=True, threads=2, control=""))
    before = [parameters.copy() for parameters in store.table.dense.parameters]
    pass_over(store)(0)
    assert all((now != then).all() for now, then in zip(store.table.dense.parameters, before, strict=True))


def test_other_bits_are_an_error() -> None:
    same({"one": "a", "other": "a"})
    with pytest.raises(WrongResultError, match="one and other do not hold the same"):
        same({"one": "a", "other": "b"})


@pytest.mark.parametrize("facts", [{"workers": 0}, {"servers": 0}, {"steps": 0}, {"rounds": 0}, {"warmup": 1}])
def test_what_cannot_be_measured_is_refused(facts: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"--{next(iter(facts))} . must be at least"):
        Plan(10_000, **facts).check()


@pytest.mark.parametrize("facts", [{"transport": "inproc"}, {"optimizer": "lion"}])
def test_unknown_ways_are_named(facts: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=f"--{next(iter(facts))} {next(iter(facts.values()))}: known are"):
        Plan(10_000, **facts).check()
