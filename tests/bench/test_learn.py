"""`shoal bench learn` in a very short form: what methods come to in so few steps means nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.bench.learn import LearnRow, Plan, Point, Run
from shoal.bench.learn_methods import METHODS
from shoal.bench.learn_plot import check_drawable, draw, modelled_seconds
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError

TEXT = "We hold these parameters to be self-evident.\n" * 200


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text"
    path.write_text(TEXT)
    return str(path)


def learnt(text: str, names: Sequence[str], rows: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of these methods, and what was printed."""
    only = [part for name in names for part in ("--only", name)]
    sizes = ["--seeds", "1", "--steps", "6", "--workers", "2"]
    result = CliRunner().invoke(
        bench_app, ["learn", "--text", text, *only, *sizes, "--json", str(rows)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(rows.read_text())
    assert [row["name"] for row in found] == list(names)
    for row in found:
        assert row["seeds"] == [0] and 1 < row["val_loss"] < 5
        assert [run["bytes"] for run in row["runs"]] == [row["bytes"]]
    return found, result.output


@pytest.mark.slow
def test_a_row_for_each_method(text: str, tmp_path: Path) -> None:
    (sync, int4, h2), _ = learnt(text, ("sync", "sync-int4", "diloco-h2"), tmp_path / "rows")
    assert sync["bytes"] / int4["bytes"] > 4, "six steps, of which the first comes back whole"
    assert 1.8 < sync["bytes"] / h2["bytes"] < 2.05


@pytest.mark.slow
def test_uneven_workers_learn_all_samples_once_and_the_naive_form_is_warned_of(text: str, tmp_path: Path) -> None:
    (naive, adamw), printed = learnt(text, ("async-naive", "async-adamw"), tmp_path / "rows")
    assert "outer=shoal.DelayedNesterov" in naive["warnings"][0] and "async-naive warns" in printed
    assert 0 < adamw["runs"][0]["age"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sync-powersgd2", "diloco-radial", "async-dylu", "decoupled", "async-adamw-dc"])
def test_what_else_there_is_learns(name: str, text: str, tmp_path: Path) -> None:
    learnt(text, (name,), tmp_path / "rows")


def row(name: str, losses: list[float]) -> LearnRow:
    points = tuple(Point(step, step, 1_000_000 * (step + 1), loss) for step, loss in enumerate(losses))
    return LearnRow(name, name, [0], losses[-1], 1, 1.0, [Run(0, losses[-1], 1, 1.0, points=points)])


def test_time_is_what_was_computed_and_what_the_link_takes() -> None:
    assert modelled_seconds(Point(100, 8.0, 250_000_000, 2.0), link_mbits=1000) == 10.0


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw([row("sync", [3.0, 2.0]), row("diloco", [3.1, 2.1])], tmp_path / "plot.png", 1000)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="ends in .png"):
        check_drawable(tmp_path / "plot.svg")
    with pytest.raises(ConfigurationError, match="does not exist"):
        check_drawable(tmp_path / "none" / "plot.png")
    monkeypatch.setattr("shoal.bench.learn_plot.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'shoal\[plot\]'"):
        check_drawable(tmp_path / "plot.png")


def test_what_cannot_be_measured_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--only mush: known are sync, sync-bfloat16"):
        Plan(text, ("mush",)).check()
    with pytest.raises(ConfigurationError, match="--seeds 0 must be at least 1"):
        Plan(text, seeds=0).check()
    with pytest.raises(ConfigurationError, match="there is no such file"):
        Plan(text + "-").check()


def test_names_are_unlike() -> None:
    assert len({method.what for method in METHODS.values()}) == len(METHODS)
