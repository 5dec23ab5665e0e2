"""`shoal policy` shows and sets the policy of the job of this machine, and says plainly what it waits for."""

from __future__ import annotations

import os
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli import policy as command
from shoal.cli.main import app
from shoal.errors import ConfigurationError, DeadlineError, JobError
from shoal.launch.jobs import JobRecord, published
from shoal.policy import Async, Bounded, Decoupled, Sync
from shoal.wire import messages as m


def shoal(coordinator: Any, *arguments: str) -> Any:
    with published(JobRecord("demo", coordinator.address, "secret", os.getpid())):
        return CliRunner().invoke(app, arguments)


def test_the_policy_in_force_is_shown_as_it_is_set(coordinator: Any) -> None:
    result = shoal(coordinator, "policy", "show")
    assert (result.exit_code, result.output) == (0, "Sync(quorum=1)\n")


@pytest.mark.parametrize(
    ("written", "policy", "words"),
    [
        ("Bounded(staleness=3)", Bounded(3), "Bounded(staleness=3)"),
        ("shoal.Async(weight='inverse', age_max=16)", Async("inverse", 16), "Async(weight='inverse', age_max=16)"),
        ("sync", Sync(), "Sync()"),
        ("Sync(0.5, grace=2.0)", Sync(0.5, 2.0), "Sync(quorum=0.5, grace=2.0)"),
        ("decoupled", Decoupled(), "Decoupled()"),
        ("Decoupled(quorum=2, grace=0.5)", Decoupled(2, 0.5), "Decoupled(quorum=2, grace=0.5)"),
    ],
)
def test_a_policy_is_written_as_in_a_script(coordinator: Any, written: str, policy: Any, words: str) -> None:
    result = shoal(coordinator, "policy", "set", written)
    assert (result.exit_code, result.output) == (0, f"{words} is in force since version 1,235\n")
    assert coordinator.wanted == [policy.spec]


@pytest.mark.parametrize("written", ["bounded", "Async(age=3)", "open('/etc/passwd')", "Async(", "Sync()()"])
def test_what_is_no_policy_is_refused_before_any_job_is_asked(coordinator: Any, written: str) -> None:
    result = shoal(coordinator, "policy", "set", written)
    assert isinstance(result.exception, ConfigurationError)
    assert "is no policy: write it as in a script" in str(result.exception)
    assert not coordinator.wanted


def test_it_waits_until_the_policy_is_in_force(coordinator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LOOK_SECONDS", 0.01)
    waiting = m.PolicySet(Sync().spec, 0, Async().spec, warning="Async() with AdamW is known to harm")
    coordinator.set = lambda wanted: waiting if len(coordinator.wanted) < 3 else m.PolicySet(wanted, 40)
    result = shoal(coordinator, "policy", "set", "Async()")
    assert result.stdout == "Async() is in force since version 40\n"
    assert result.stderr == "warning: Async() with AdamW is known to harm\n"
    assert coordinator.wanted == [Async().spec] * 3, "again, for a coordinator that took over would not know of it"


def test_who_does_not_come_to_rest_is_found_in_the_status(coordinator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LOOK_SECONDS", 0.01)
    coordinator.set = lambda wanted: m.PolicySet(Sync().spec, 0, wanted)
    result = shoal(coordinator, "policy", "set", "Async()", "--wait", "0.05")
    assert isinstance(result.exception, DeadlineError) and "`shoal status` shows for whom" in str(result.exception)
    result = shoal(coordinator, "policy", "set", "Async()", "--wait", "0")
    assert result.output == "Async() takes over once workers have finished what they compute\n"


def test_a_job_that_forms_has_its_script_say_which(coordinator: Any) -> None:
    coordinator.set = lambda wanted: m.PolicySet(None, error="job demo is forming: ask again when it runs")
    result = shoal(coordinator, "policy", "set", "Async()")
    assert isinstance(result.exception, JobError) and "ask again when it runs" in str(result.exception)
