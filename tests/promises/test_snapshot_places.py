"""Snapshots of a job go wherever a path or a URL leads, and only as many stay as were asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from torch import nn

from shoal.client import ParameterServer, connect
from shoal.errors import ConfigurationError, SnapshotError
from shoal.optim import AdamW
from shoal.storage import shelf


@pytest.fixture
def bucket() -> Iterator[str]:
    yield "memory://bucket/run"
    fsspec.filesystem("memory").store.clear()


def step(ps: ParameterServer, times: int) -> list[torch.Tensor]:
    """Train so many steps from what the job has; the parameters then."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = ps.optimizer(model, AdamW(lr=0.1))
    for _ in range(times):
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [item.detach().clone() for item in model.parameters()]


def test_a_url_is_written_to_and_resumed_from(bucket: str) -> None:
    with connect() as ps:
        whole = step(ps, 5)
    with connect() as ps:
        step(ps, 3)
        assert ps.snapshot(f"{bucket}/three") > 0
    with connect(resume=f"{bucket}/three") as ps:
        assert all(map(torch.equal, step(ps, 2), whole))
    with pytest.raises(SnapshotError, match=r"memory:.*/bucket/run/four/manifest.json cannot be read"):
        connect(resume=f"{bucket}/four")


def test_only_the_newest_stay_once_a_new_one_is_complete(bucket: str, tmp_path: Path) -> None:
    for parent in (bucket, str(tmp_path / "run")):
        with connect() as ps:
            step(ps, 1)
            with pytest.raises(ConfigurationError, match=r"ps.snapshot\(..., keep=0\) must be 1 or more"):
                ps.snapshot(f"{parent}/none", keep=0)
            for name in "abcd":
                ps.snapshot(f"{parent}/{name}", keep=2)
            assert [item.place.name for item in shelf.find(parent)] == ["c", "d"]
            ps.snapshot(f"{parent}/e")
            ps.snapshot(f"{parent}/f", wait=False, keep=3)
        assert [item.place.name for item in shelf.find(parent)] == ["d", "e", "f"], "leaving waits for it"


def test_what_a_job_resumed_from_stays_where_it_is_elsewhere(tmp_path: Path) -> None:
    with connect() as ps:
        step(ps, 1)
        ps.snapshot(tmp_path / "first" / "a")
    with connect(resume=tmp_path / "first" / "a") as ps:
        step(ps, 1)
        for name in "bcd":
            ps.snapshot(tmp_path / "second" / name, keep=1)
    assert [item.place.name for item in shelf.find(tmp_path / "first")] == ["a"]
    assert [item.place.name for item in shelf.find(tmp_path / "second")] == ["d"]


def test_a_new_one_that_fails_costs_no_old_one(tmp_path: Path) -> None:
    with connect() as ps:
        step(ps, 1)
        for name in "ab":
            ps.snapshot(tmp_path / name)
        (tmp_path / "c").write_text("in the way")
        with pytest.raises(SnapshotError, match="c was not written"):
            ps.snapshot(tmp_path / "c", keep=1)
    assert [item.place.name for item in shelf.find(tmp_path)] == ["a", "b"]


def test_what_cannot_be_removed_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    with connect() as ps:
        step(ps, 1)
        ps.snapshot(tmp_path / "a")
        monkeypatch.setattr(Path, "unlink", refuse)
        assert ps.snapshot(tmp_path / "b", keep=1) > 0
        monkeypatch.undo()
    assert [item.wrong for item in shelf.find(tmp_path)] == ["", ""]
    said = capfd.readouterr().err
    assert f"{tmp_path}/b is complete, but old snapshots in {tmp_path} cannot be removed: " in said
