"""`shoal bench overlap`, end to end in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.overlap import Plan
from shoal.bench.overlap_worker import gpt
from shoal.bench.rows import Row
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError

SMALL = ("--params", "20K", "--batch", "1", "--context", "8", "--steps", "3", "--warmup", "2", "--rounds", "2")


def test_training_and_its_halves_beside_ddp(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    result = CliRunner().invoke(bench_app, ["overlap", *SMALL, "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "hidden behind compute" in result.output
    (row,) = json.loads(path.read_text())
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["peer"], row["transport"], row["tokens"]) == ("overlap", "ddp", "shm", 8)
    kinds = ("step_seconds", "compute_step_seconds", "exchange_step_seconds", "peer_step_seconds")
    assert [len(row[kind]) for kind in kinds] == [3, 3, 3, 3]
    both, compute, exchange = (row[f"{kind}seconds"]["median"] for kind in ("", "compute_", "exchange_"))
    assert row["hidden_share"] == 1 - (both - compute) / exchange
    assert len(row["hidden_share_by_round"]) == 2
    assert row["ratio"] == both / row["peer_seconds"]["median"]
    assert row["difference"] <= row["tolerance"] >= row["peer_difference"]


@pytest.mark.parametrize("params", [5_000, 100_000, 3_000_000])
def test_the_gpt_has_the_size_asked_for(params: int) -> None:
    size = Plan(params=params, context=32).size
    found = sum(parameter.numel() for parameter in gpt(size).parameters())
    assert abs(found - params) <= max(size.width, 0.2 * params if params < 10_000 else 0)


@pytest.mark.parametrize(
    ("fact", "value"), [("transport", "inproc"), ("peer", "rpc"), ("params", 10), ("context", 1), ("warmup", 1)]
)
def test_what_cannot_be_measured_is_refused(fact: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"--{fact} {value}"):
        Plan(**{fact: value}).check()
