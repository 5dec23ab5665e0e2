"""`shoal status` finds the job of this machine, shows its members, and says it plainly when there is none."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli import status as command
from shoal.cli.main import app
from shoal.errors import JobError, RefusedError
from shoal.launch.jobs import JobRecord, published


def shoal(*arguments: str, **environment: str) -> Any:
    return CliRunner(env={"COLUMNS": "100", **environment}).invoke(app, arguments)


def record(coordinator: Any) -> JobRecord:
    return JobRecord("demo", coordinator.address, "secret", os.getpid())


def test_without_a_job_there_is_one_line_and_status_1() -> None:
    result = shoal("status")
    assert result.exit_code == 1
    assert result.output == "no job is running on this machine; start one with: shoal run SCRIPT\n"


def test_the_table_shows_every_member(coordinator: Any) -> None:
    with published(record(coordinator)):
        result = shoal("status")
    assert result.exit_code == 0, result.output
    assert "demo: running, Sync(quorum=1), version 1,234, data epoch 2, 14,808 of 60,000 samples" in " ".join(
        result.output.split()
    )
    assert "waiting: worker 1 is not ready" in result.output
    (row,) = [" ".join(line.split()) for line in result.output.splitlines() if "worker/1" in line]
    assert row == "worker/1 busy 1,235 1,233 3 120 B 2.3 GB 1.5 s loss 1.881"
    (row,) = [" ".join(line.split()) for line in result.output.splitlines() if "server/0" in line]
    assert row == "server/0 serving 1,235 1,234 5.6 MB 7.0 kB 0.0 s"


def test_contributions_are_shown_by_age(coordinator: Any) -> None:
    with published(record(coordinator)):
        lines = [" ".join(line.replace("#", "").split()) for line in shoal("status").output.splitlines()]
        seen = json.loads(shoal("status", "--json").output)
    first = lines.index("0 800 68%")
    assert lines[first : first + 5] == ["0 800 68%", "1 300 25%", "2 to 3 75 6%", "4 to 7 0 0%", "8 to 15 5 0%"]
    assert "7 more were dropped: too late, or too old" in lines
    assert seen["ages"] == {"0": 800, "1": 300, "2": 50, "3": 25, "9": 5}


def test_json_names_every_field(coordinator: Any) -> None:
    with published(record(coordinator)):
        result = shoal("status", "--json")
    seen = json.loads(result.output)
    assert seen["version"] == 1234
    assert seen["members"][2]["figures"] == {"loss": 1.8812}
    assert seen["members"][2]["sent"] == 2_300_000_000


def test_a_job_elsewhere_is_asked_by_its_address(coordinator: Any) -> None:
    result = shoal("status", coordinator.address, "--json", SHOAL_JOB="demo", SHOAL_TOKEN="secret")
    assert json.loads(result.output)["job"] == "demo"


def test_the_address_of_a_job_of_this_machine_needs_no_token(coordinator: Any) -> None:
    other = JobRecord("other", "tcp://127.0.0.1:1", "x", os.getpid() + 1)
    with published(record(coordinator)), published(other):
        assert json.loads(shoal("status", coordinator.address, "--json").output)["job"] == "demo"


def test_other_jobs_are_mentioned(coordinator: Any) -> None:
    other = JobRecord("other", "tcp://127.0.0.1:1", "x", os.getpid() + 1)
    with published(other), published(record(coordinator)):
        result = shoal("status", "--json")
    assert result.stderr == "another job runs: other at tcp://127.0.0.1:1\n"
    assert json.loads(result.stdout)["job"] == "demo"


def test_watching_looks_until_the_job_has_ended(coordinator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "WATCH_SECONDS", 0.01)
    coordinator.visits_max = 3
    with published(record(coordinator)):
        result = shoal("status", "--watch", "--json")
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 3


def test_a_job_that_cannot_be_reached_is_an_error_of_shoal(coordinator: Any) -> None:
    result = shoal("status", coordinator.address, SHOAL_JOB="demo", SHOAL_TOKEN="guess")
    assert isinstance(result.exception, RefusedError)
    coordinator.close()
    with published(record(coordinator)):
        assert isinstance(shoal("status").exception, JobError)
