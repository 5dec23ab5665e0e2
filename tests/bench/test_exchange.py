"""`shoal bench exchange`, end to end in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.exchange import Plan
from shoal.bench.rows import Row
from shoal.cli.bench import bench_app, histogram
from shoal.errors import ConfigurationError

SMALL = ("--params", "20K", "--steps", "3", "--warmup", "2", "--rounds", "2")


def rows_of(arguments: tuple[str, ...], path: Path) -> list[dict[str, object]]:
    result = CliRunner().invoke(bench_app, [*arguments, "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "off reference" in result.output
    found: list[dict[str, object]] = json.loads(path.read_text())
    return found


def test_tcp_beside_ddp(tmp_path: Path) -> None:
    (row,) = rows_of(("exchange", *SMALL, "--servers", "2"), tmp_path / "rows.json")
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["peer"], row["workers"], row["servers"]) == ("exchange", "ddp", 2, 2)
    assert (row["transport"], row["policy"], row["optimizer"]) == ("tcp", "Sync()", "adamw")
    assert row["seconds"]["samples"] == row["peer_seconds"]["samples"] == 3
    assert len(row["step_seconds"]) == 3
    assert row["ratio"] == row["seconds"]["median"] / row["peer_seconds"]["median"]
    assert 0 < row["floor_share"] == row["floor_seconds"] / row["seconds"]["median"]
    assert row["steps_checked"] == 2 + 3 + 2
    assert row["difference"] <= row["tolerance"]


def test_inproc_beside_one_flat_all_reduce(tmp_path: Path) -> None:
    arguments = ("exchange", *SMALL, "--transport", "inproc", "--peer", "allreduce", "--optimizer", "sgd")
    (row,) = rows_of(arguments, tmp_path / "rows.json")
    assert (row["transport"], row["peer"], row["optimizer"]) == ("inproc", "allreduce", "sgd")
    assert row["ratio"] > 0


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("transport", "pigeon"),
        ("optimizer", "lbfgs"),
        ("peer", "horovod"),
        ("workers", 0),
        ("warmup", 1),
        ("steps", 0),
    ],
)
def test_what_cannot_be_measured_is_refused(fact: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"--{fact} {value}"):
        Plan(**{"params": 10_000, fact: value}).check()


def test_a_histogram_has_its_values_where_they_belong() -> None:
    assert histogram([0.0, 0.0, 1.0], 0.0, 1.0) == "█" + " " * 22 + "▄"
    assert histogram([2.0], 2.0, 2.0).strip() == "█"
