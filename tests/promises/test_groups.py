"""A process group trains as one worker: the same learning, the same bytes, and one fate for all of its ranks."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import shoal
from shoal.config import Limits
from shoal.errors import ConfigurationError
from shoal.launch.local import launch

SCRIPT = str(Path(__file__).with_name("grouped.py"))
CLOSE = 1e-6  # what summing half a batch at a time may change in parameters around 0.1, over a few steps
Found = dict[int, dict[str, Any]]
Said = list[tuple[str, str]]


def run(
    place: Path, workers: int, *arguments: str, group: int = 1, said: Said | None = None, servers: int = 1
) -> Found:
    """What each worker came to, by rank. Over tcp, where every byte is counted."""
    place.mkdir()
    status = launch(
        [SCRIPT, str(place), *arguments],
        workers,
        servers,
        group=group,
        env=os.environ | {"SHOAL_TRANSPORT": "tcp"},
        limits=Limits(lease_ms=20_000),
        on_line=lambda source, text: said.append((source, text)) if said is not None else None,
    )
    assert status == 0
    return {int(path.stem): torch.load(path) for path in place.glob("*.pt")}


def gap(one: Found, other: Found) -> float:
    """The largest difference between the parameters that the first workers of two runs ended with."""
    return float((one[0]["flat"] - other[0]["flat"]).abs().max())


def all_alike(found: Found) -> bool:
    return all(torch.equal(item["flat"], found[0]["flat"]) for item in found.values())


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_group_and_a_worker_learn_what_two_workers_do_with_the_bytes_of_two(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", 2, "--plain")
    mixed = run(tmp_path / "mixed", 3, "--port", free_port())
    assert all_alike(mixed)
    assert gap(mixed, alone) < CLOSE
    moved = mixed[0]["bytes"] + mixed[1]["bytes"]
    assert moved == pytest.approx(alone[0]["bytes"], rel=0.05)
    assert mixed[0]["bytes"] == pytest.approx(mixed[1]["bytes"], rel=0.3), "each rank has its share of it"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("--wrapped",), ("--sharded",), ("--push", "int8", "--pull", "int8"), ("--local", "2")],
    ids=lambda item: item[0],
)
def test_groups_learn_what_workers_do(arguments: tuple[str, ...], tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", 2, "--plain", *arguments)
    grouped = run(tmp_path / "grouped", 4, *arguments, group=2, servers=2)
    assert all_alike(grouped)
    coarse = 0.01 if "--push" in arguments else CLOSE
    assert gap(grouped, alone) < coarse


@pytest.mark.slow
def test_a_killed_rank_is_started_again_with_its_group_and_the_job_goes_on(tmp_path: Path) -> None:
    said: Said = []
    found = run(tmp_path / "killed", 4, "--die", "3:3", group=2, said=said)
    assert all_alike(found)
    assert len(found) == 4
    assert {item["clock"] for item in found.values()} == {6}
    text = "\n".join(line for _, line in said)
    assert "worker 3" in text and "SIGKILL; started again (restart 1 of 3)" in text
    assert "workers 2, 3 are one group: all of it starts again" in text


@pytest.mark.slow
def test_all_ranks_take_as_many_steps_though_samples_do_not_go_round(tmp_path: Path) -> None:
    found = run(tmp_path / "loader", 4, "--loader", "21", group=2)
    assert all_alike(found)
    assert found[0]["steps"] == found[1]["steps"] and found[2]["steps"] == found[3]["steps"]


def test_who_forgets_the_group_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_GROUP", "0")
    with (
        shoal.connect() as ps,
        pytest.raises(ConfigurationError, match=r"init_process_group.* group=torch.distributed.group.WORLD"),
    ):
        ps.optimizer(nn.Linear(2, 2), shoal.SGD(lr=0.1))


def test_what_is_no_process_group_is_refused() -> None:
    with shoal.connect() as ps, pytest.raises(ConfigurationError, match="group=2 is no process group"):
        ps.optimizer(nn.Linear(2, 2), shoal.SGD(lr=0.1), group=2)


def test_workers_that_make_no_whole_groups_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--group 2 of 3 workers.* --workers 4 --group 2"):
        launch([SCRIPT], 3, 1, group=2)
