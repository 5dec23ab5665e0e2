"""A visitor gets the job's status, or one error that says why not, in time."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import ConfigurationError, DeadlineError, JobError, ProtocolError, RefusedError
from shoal.runtime import visitor


def test_a_visitor_is_told_the_status(coordinator: Any) -> None:
    seen = visitor.status(coordinator.address, "demo", "secret", 5_000)
    assert seen.version == 1234
    assert [member.name for member in seen.members] == ["coordinator", "server/0", "worker/1"]
    assert seen.members[2].figures == {"loss": 1.8812}


def test_a_wrong_token_is_refused(coordinator: Any) -> None:
    with pytest.raises(RefusedError, match=f"{coordinator.address} refused: the token is not this job's"):
        visitor.status(coordinator.address, "demo", "guess", 5_000)


def test_a_silent_coordinator_is_not_waited_for(coordinator: Any) -> None:
    coordinator.fault = "silent"
    with pytest.raises(DeadlineError, match=f"{coordinator.address} did not answer in 200 ms"):
        visitor.status(coordinator.address, "demo", "secret", 200)


@pytest.mark.parametrize(("fault", "error"), [("closes", JobError), ("noise", ProtocolError)])
def test_a_coordinator_that_misbehaves_is_one_error(coordinator: Any, fault: str, error: type[Exception]) -> None:
    coordinator.fault = fault
    with pytest.raises(error):
        visitor.status(coordinator.address, "demo", "secret", 5_000)


def test_nobody_there_is_told_with_the_address(coordinator: Any) -> None:
    coordinator.close()
    with pytest.raises(JobError, match=f"no coordinator can be reached at {coordinator.address}"):
        visitor.status(coordinator.address, "demo", "secret", 5_000)


@pytest.mark.parametrize(
    "wrong", ["", "nonsense", "tcp://host", "tcp://host:port", "tcp://:1", "tcp://127.0.0.1:99999"]
)
def test_what_is_no_address_is_told(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an address"):
        visitor.status(wrong, "demo", "secret", 5_000)
