"""`shoal bench snapshot`, end to end in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench.rows import Row
from shoal.bench.snapshot import Kept, Plan
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError


def test_training_beside_snapshots(tmp_path: Path) -> None:
    path, folder = tmp_path / "rows.json", tmp_path / "f"  # a socket lies in it, whose path may not be long
    folder.mkdir()
    small = ("--params", "10K", "--steps", "3", "--warmup", "1", "--snapshots", "2", "--folder", str(folder))
    result = CliRunner().invoke(bench_app, ["snapshot", *small, "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "of the writing time (to be at most 5%)" in " ".join(result.output.split())
    (row,) = json.loads(path.read_text())
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["policy"], row["transport"], row["workers"]) == ("snapshot", "Sync()", "shm", 2)
    assert len(row["plain_step_seconds"]) == 4 * 3 and len(row["snapshots"]) == 2
    for kept in (row["first"], *row["snapshots"]):
        assert kept["size_bytes"] > 10_000 * 16 and kept["writing_seconds"] > 0
        assert sum(kept["step_seconds"]) >= kept["writing_seconds"], "it trains until the snapshot is complete"
    assert list(folder.iterdir()) == []


def test_the_delay_is_what_the_steps_took_longer() -> None:
    kept = Kept.of(2.0, 10, [0.25, 0.5, 0.75], [0.25, 0.5])
    assert (kept.plain_seconds, kept.pause_seconds) == (0.375, 0.125)
    assert (kept.delay_seconds, kept.delay_share) == (0.375, 0.1875)


@pytest.mark.parametrize(("fact", "value"), [("transport", "inproc"), ("snapshots", 0), ("folder", Path("/nowhere"))])
def test_what_cannot_be_measured_is_refused(fact: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"--{fact} {value}"):
        Plan(**{fact: value}).check()  # type: ignore[arg-type]
