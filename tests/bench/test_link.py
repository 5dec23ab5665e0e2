"""`shoal bench link`: it measures where it may, says why where it may not, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.bench import namespaces
from shoal.bench.fleet import Fleet
from shoal.bench.link import Plan, probe
from shoal.bench.namespaces import Shape, joined, obstacle, remove_left_behind
from shoal.bench.rows import Row
from shoal.cli.bench import bench_app
from shoal.errors import ConfigurationError

SMALL = ("--params", "1000", "--steps", "2", "--warmup", "2", "--rounds", "1", "--delay", "1")

needs_rights = pytest.mark.skipif(obstacle() is not None, reason=f"no network namespaces here: {obstacle()}")


def left(pid: int) -> list[str]:
    """Namespaces of this process."""
    place = Path("/run/netns")
    return [path.name for path in place.iterdir() if f"-{pid}-" in path.name] if place.exists() else []


@needs_rights
def test_a_row_of_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    result = CliRunner().invoke(bench_app, ["link", *SMALL, "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "tcp_slow_start_after_idle=0" in result.output
    (row,) = json.loads(path.read_text())
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["transport"], row["peer"]) == ("link", "tcp", "ddp")
    assert row["line_bytes"] == 2 * 2 * 4 * row["params"]
    assert row["floor_share"] == row["floor_seconds"] / row["seconds"]["median"] < 1
    assert row["floor_seconds"] == row["line_bytes"] * 8 / row["bits_per_second"]
    assert row["delayed_by"] in ("netem", "relay")
    assert row["probe_round_trip_seconds"] >= 0.002
    assert left(os.getpid()) == []


@needs_rights
def test_the_link_is_as_long_and_as_narrow_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.bench.link.PROBE_SECONDS", 1.0)
    with Fleet("t", 1, 1) as fleet, joined(Shape(100_000_000, 15.0), fleet) as link:
        assert len(left(os.getpid())) == 2
        round_trip, bytes_per_second = probe(link)
    assert round_trip >= 0.03
    assert 8 * bytes_per_second < 120_000_000
    assert left(os.getpid()) == []


@needs_rights
def test_an_error_inside_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), Fleet("t", 1, 1) as fleet, joined(Shape(), fleet):
        raise ZeroDivisionError
    assert left(os.getpid()) == []


@needs_rights
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_benchmark_leaves_nothing_for_long(number: signal.Signals) -> None:
    program = (
        "import time\n"
        "from shoal.bench.fleet import Fleet\n"
        "from shoal.bench.namespaces import Shape, joined\n"
        "with Fleet('t', 1, 1) as fleet, joined(Shape(), fleet):\n"
        "    print('there', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        assert len(left(process.pid)) == 2
        process.send_signal(number)
        process.wait(20)
    finally:
        process.kill()
        process.wait()
    if number == signal.SIGKILL:
        remove_left_behind()  # what the next benchmark does first
    assert left(process.pid) == []


def test_without_the_rights_it_says_so_and_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    why = obstacle()
    assert why is not None and "there is no `ip` on this machine" in why
    path = tmp_path / "rows.json"
    start = time.monotonic()
    result = CliRunner().invoke(bench_app, ["link", *SMALL, "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "link: skipped: there is no `ip`" in result.output
    (row,) = json.loads(path.read_text())
    assert tuple(row)[: len(Row.__struct_fields__)] == Row.__struct_fields__
    assert (row["bench"], row["seconds"], row["skipped"]) == ("link", None, why)
    assert time.monotonic() - start < 10


def test_a_user_without_rights_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("ip", "tc"):
        stand_in = tmp_path / program
        stand_in.write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
        stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    why = namespaces.obstacle()
    assert why is not None and "run it as root" in why and "Operation not permitted" in why


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--peer ray does not cross a link"):
        Plan(peers=("ray",)).check()
    with pytest.raises(ConfigurationError, match="--rate and --delay"):
        Plan(shape=Shape(0, 10.0)).check()


@needs_rights
@pytest.mark.slow
def test_training_over_the_link_by_each_method(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    sizes = ("--params", "100000", "--steps", "2", "--rounds", "1", "--delay", "1")
    result = CliRunner().invoke(bench_app, ["link", "--train", *sizes, "--json", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert tuple(rows) == ("compute", "ddp", "bfloat16", "int8", "streaming")
    assert rows["ddp"]["of_ddp"] == rows["compute"]["of_compute"] == 1
    assert all(row["of_compute"] > 0 and len(row["seconds"]) == 1 for row in rows.values())
    assert left(os.getpid()) == []
