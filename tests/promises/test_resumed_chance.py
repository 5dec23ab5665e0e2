"""Random state is part of a snapshot: under Sync a resumed job draws, on every rank, what it would have drawn."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shoal.client import connect
from shoal.errors import SnapshotError
from shoal.launch.local import launch
from shoal.optim import SGD
from shoal.policy import Async, Sync
from shoal.storage.manifest import read
from shoal.storage.place import place
from shoal.storage.shelf import verify
from shoal.storage.snapshot import read_random

FED = ("sign", "topk", "randomk")

SCRIPT = """
import os, random, sys
import numpy as np
import torch
import shoal

torch.set_num_threads(1)
first, last, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with shoal.connect() as ps:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 40), torch.nn.Dropout(0.5), torch.nn.Linear(40, 3))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(10 * first + ps.rank)  # a resumed run that kept these would differ
    opt = ps.optimizer(model, shoal.AdamW(lr=1e-2), sync=shoal.Sync(), overlap=bool(int(sys.argv[4])), push=sys.argv[5])
    for clock in range(first, last + 1):
        if ps.rank == 1 and clock == 6 and path:
            ps.snapshot(path, wait=False)
        x = torch.randn(4, 12) * random.random() * np.random.normal()
        model(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
    opt.wait()
    print("bits", b"".join(p.detach().numpy().tobytes() for p in model.parameters()).hex())
"""


def bits(
    folder: Path,
    first: int,
    last: int,
    path: str = "",
    overlap: bool = False,
    resume: str | None = None,
    push: str = "",
) -> str:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    lines: list[tuple[str, str]] = []
    command = (str(script), str(first), str(last), path, str(int(overlap)), push)
    assert launch(command, 2, 1, resume=resume, on_line=lambda *line: lines.append(line)) == 0, lines
    (found,) = {text for _, text in lines if text.startswith("bits ")}
    return found


@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_dropout_goes_on_where_it_was_on_every_rank(overlap: bool, tmp_path: Path) -> None:
    """The snapshot is asked for by one rank only, while the other computes."""
    snapshot = str(tmp_path / "five")
    whole = bits(tmp_path, 1, 9, snapshot, overlap)
    assert read(place(snapshot)).clock == 5
    assert bits(tmp_path, 6, 9, overlap=overlap, resume=snapshot) == whole


SLOW = [pytest.param(push, False, marks=pytest.mark.slow) for push in FED]


@pytest.mark.parametrize(("push", "overlap"), [("2bit", False), ("2bit", True), *SLOW])
def test_what_codecs_lost_goes_on_where_it_was_on_every_rank(push: str, overlap: bool, tmp_path: Path) -> None:
    snapshot = str(tmp_path / "five")
    whole = bits(tmp_path, 1, 9, snapshot, overlap, push=push)
    assert {"lost-0.safetensors", "lost-1.safetensors"} <= {path.name for path in Path(snapshot).iterdir()}
    verify(snapshot)
    assert bits(tmp_path, 6, 9, overlap=overlap, resume=snapshot, push=push) == whole


def drawn() -> tuple[float, ...]:
    """Of every generator, one number; of numpy's, of a pair too."""
    return float(torch.rand(())), random.random(), np.random.random(), np.random.normal()  # noqa: NPY002


def test_every_generator_goes_on(tmp_path: Path) -> None:
    with connect() as ps:
        model = nn.Linear(2, 1)
        optimizer = ps.optimizer(model, SGD(lr=0.1))
        for _ in range(4):
            drawn()  # an odd number of normal ones lies in store every second time
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            ps.snapshot(tmp_path / str(optimizer.clock - 1))
            ps.snapshot(tmp_path / "again")
        then = drawn()
    for clock in (3, 4):
        with connect(resume=tmp_path / str(clock)) as ps:
            random.seed(1)
            np.random.seed(1)  # noqa: NPY002
            optimizer = ps.optimizer(model, SGD(lr=0.1))
            if clock == 3:
                drawn()
            assert drawn() == then


def test_the_policy_is_in_it_too(tmp_path: Path) -> None:
    for policy in (Sync(quorum=0.5), Async()):
        with connect() as ps:
            ps.optimizer(nn.Linear(2, 1), SGD(lr=0.1), sync=policy)
            ps.snapshot(tmp_path / type(policy).__name__)
        manifest = read(place(tmp_path / type(policy).__name__))
        assert manifest.spec.policy == policy.spec
        assert read_random(tmp_path / type(policy).__name__, 0)
        assert read_random(tmp_path / type(policy).__name__, 1) is None


def test_a_state_that_is_damaged_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with connect() as ps:
        ps.optimizer(nn.Linear(2, 1), SGD(lr=0.1))
        ps.worker.remember(2, lambda: b"of another adapter")
        ps.worker.remember(1, lambda: b"of another adapter")
        ps.snapshot(tmp_path / "one")
    with connect(resume=tmp_path / "one") as ps, pytest.raises(SnapshotError, match="worker 0 in .*/one is none of"):
        ps.optimizer(nn.Linear(2, 1), SGD(lr=0.1))
    path = tmp_path / "one" / "random.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    damage = r"random\.safetensors: a byte differs"
    with connect(resume=tmp_path / "one") as ps, pytest.raises(SnapshotError, match=damage):
        ps.optimizer(nn.Linear(2, 1), SGD(lr=0.1))
