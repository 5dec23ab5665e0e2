"""`shoal bench exchange`, end to end in a few seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from shoal.bench.exchange import ExchangeRow, Plan, fastest
from shoal.bench.peers.catalogue import PEERS, chosen
from shoal.bench.rows import Row
from shoal.cli.bench import bench_app
from shoal.cli.bench.show import histogram
from shoal.errors import ConfigurationError

SMALL = ("--params", "20K", "--steps", "3", "--warmup", "2", "--rounds", "2")


def rows_of(arguments: tuple[str, ...], path: Path) -> list[dict[str, object]]:
    result = CliRunner().invoke(bench_app, [*arguments, "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "off reference" in result.output
    found: list[dict[str, object]] = json.loads(path.read_text())
    return found


def test_shared_memory_beside_ddp(tmp_path: Path) -> None:
    (row,) = rows_of(("exchange", *SMALL, "--servers", "2"), tmp_path / "rows.json")
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["peer"], row["workers"], row["servers"]) == ("exchange", "ddp", 2, 2)
    assert (row["transport"], row["policy"], row["optimizer"]) == ("shm", "Sync()", "adamw")
    assert row["seconds"]["samples"] == row["peer_seconds"]["samples"] == 3
    assert len(row["step_seconds"]) == 3
    assert row["ratio"] == row["seconds"]["median"] / row["peer_seconds"]["median"]
    assert 0 < row["floor_share"] == row["floor_seconds"] / row["seconds"]["median"]
    assert row["steps_checked"] == 2 + 3 + 2
    assert row["difference"] <= row["tolerance"]
    memory = row["server_memory"]
    assert memory["table_bytes"] == 3 * 4 * row["params"]
    assert memory["beyond_bytes"] == memory["own_bytes"] - memory["baseline_bytes"] - memory["table_bytes"]
    assert memory["share"] == memory["beyond_bytes"] / memory["table_bytes"]
    assert memory["baseline_bytes"] > 0


@pytest.mark.slow
def test_inproc_beside_one_flat_all_reduce(tmp_path: Path) -> None:
    arguments = ("exchange", *SMALL, "--transport", "inproc", "--peer", "allreduce", "--optimizer", "sgd")
    (row,) = rows_of(arguments, tmp_path / "rows.json")
    assert (row["transport"], row["peer"], row["optimizer"]) == ("inproc", "allreduce", "sgd")
    assert row["ratio"] > 0
    assert row["server_memory"] is None


@pytest.mark.slow
def test_tcp_beside_two_peers_has_two_rows_and_the_quickest_is_named(tmp_path: Path) -> None:
    arguments = ("exchange", "--params", "1000", "--steps", "2", "--warmup", "2", "--rounds", "1")
    rows = rows_of((*arguments, "--peer", "allreduce,rpc", "--transport", "tcp"), tmp_path / "rows.json")
    assert {row["transport"] for row in rows} == {"tcp"}
    assert [row["peer"] for row in rows] == ["allreduce", "rpc"]
    assert [row["steps_checked"] for row in rows] == [2 + 3, 2 * (2 + 3)]
    assert all(row["peer_difference"] <= row["tolerance"] for row in rows)
    best = fastest(msgspec.json.decode((tmp_path / "rows.json").read_bytes(), type=list[ExchangeRow]))
    assert best is not None and best.ratio == max(row["ratio"] for row in rows)


@pytest.mark.slow
def test_beside_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (row,) = rows_of(("exchange", *SMALL, "--peer", "ray", "--workers", "3"), tmp_path / "rows.json")
    assert (row["peer"], row["peer_seconds"]["samples"]) == ("ray", 3)
    assert row["peer_difference"] <= row["tolerance"]


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(PEERS["ray"], package="no_such_package")
    monkeypatch.setitem(PEERS, "ray", absent)
    path = tmp_path / "rows.json"
    arguments = ["exchange", "--params", "1000", "--steps", "1", "--warmup", "2", "--rounds", "1", "--peer", "ray"]
    result = CliRunner().invoke(bench_app, [*arguments, "--json", str(path)], catch_exceptions=False)
    assert "ray is left out: no_such_package is not installed; `pip install 'ray==2.60.*'` does it" in result.output
    (row,) = json.loads(path.read_text())
    assert (row["peer"], row["ratio"], row["peer_seconds"]) == (None, None, None)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("transport", "pigeon"),
        ("optimizer", "lbfgs"),
        ("workers", 0),
        ("warmup", 1),
        ("steps", 0),
    ],
)
def test_what_cannot_be_measured_is_refused(fact: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"--{fact} {value}"):
        Plan(**{"params": 10_000, fact: value}).check()


def test_a_peer_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--peer horovod: known are ddp"):
        chosen("ddp,horovod")
    with pytest.raises(ConfigurationError, match="--peer horovod"):
        Plan(params=10_000, peers=("horovod",)).check()


def test_peers_are_chosen_by_name() -> None:
    assert chosen("none") == ((), ())
    assert chosen("rpc,ddp,rpc") == (("rpc", "ddp"), ())
    here, absent = chosen("all")
    assert {*here, *(peer.name for peer in absent)} == set(PEERS)


def test_a_histogram_has_its_values_where_they_belong() -> None:
    assert histogram([0.0, 0.0, 1.0], 0.0, 1.0) == "█" + " " * 22 + "▄"
    assert histogram([2.0], 2.0, 2.0).strip() == "█"
