"""Runs of the recipe, whole: processes, snapshot, result, and going on; and what a killed worker changes: nothing."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.launch.local import launch
from shoal.recipes.gpt.folder import Folder, Result
from shoal.recipes.gpt.sample import load, write
from shoal.recipes.gpt.settings import PolicyKind, Settings
from shoal.recipes.gpt.text import make_tokenizer
from shoal.wire.messages import Status

TEXT = "".join(f"the {number % 7}th shoal swims past the {number % 5}th reef, and turns.\n" for number in range(200))
SMALL = Settings(
    n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=4, max_iters=30, warmup_iters=5, learning_rate=1e-2,
    eval_iters=2, sample_tokens=40,
)  # fmt: skip
UNTAUGHT = math.log(len(set(TEXT)))


def prepared(place: Path, settings: Settings) -> Folder:
    """The folder of a run that can begin."""
    place.mkdir(parents=True)
    text = place / "text.txt"
    text.write_text(TEXT)
    folder = Folder(place)
    folder.begin(replace(settings, text=str(text)), make_tokenizer(TEXT, "char", 0))
    return folder


def outcome(folder: Folder) -> Result:
    result = folder.result()
    assert result is not None
    return result


def shoal(*arguments: str, cwd: Path) -> str:
    """The output of a shoal command that succeeds."""
    command = [sys.executable, "-m", "shoal.cli.main", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["sync", "async"])
def test_local_steps_in_few_bits_learn_and_go_on(sync: PolicyKind, tmp_path: Path) -> None:
    settings = replace(SMALL, max_iters=60, every=5, push="e3m0", pull="e3m0", snapshot_interval=30, sync=sync)
    folder = prepared(tmp_path / "run", settings)
    lines: list[str] = []
    command = ("-m", "shoal.recipes.gpt.worker", str(folder.path))
    assert launch(command, 2, 1, on_line=lambda _, text: lines.append(text)) == 0, lines
    assert outcome(folder).val_loss < UNTAUGHT - 0.3
    assert folder.snapshot(60) == Path(outcome(folder).snapshot)
    folder.begin(replace(folder.settings(), max_iters=90, done_iters=60), folder.tokenizer())
    assert launch(command, 2, 2, resume=folder.snapshot(60), on_line=lambda _, text: lines.append(text)) == 0, lines
    assert outcome(folder).iterations == 90
    assert any(line.startswith("iteration 60: ") for line in lines), "where it went on"


@pytest.mark.slow
def test_train_then_go_on_then_sample(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    options = [
        f"--{name}={getattr(SMALL, name)}"
        for name in ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "warmup_iters", "learning_rate")
    ]
    said = shoal("train", "gpt", "--text=text.txt", *options, "--max_iters=30", "--json=first.json", cwd=tmp_path)
    first = json.loads((tmp_path / "first.json").read_text())
    assert set(first) == {"val_loss", "train_loss", "iterations", "tokens", "seconds", "snapshot"}
    assert (first["iterations"], first["tokens"]) == (30, 30 * 4 * 16)
    assert first["val_loss"] < UNTAUGHT - 0.5
    assert f"validation loss {first['val_loss']:.4f}" in said and first["snapshot"] in said
    assert said.startswith("the run's folder: out/gpt\n")
    assert "shoal sample out/gpt" in said and "--resume out/gpt" in said
    assert (tmp_path / "out/gpt/sample.txt").read_text().strip("\n") in said

    said = shoal("train", "gpt", "--resume=out/gpt", "--max-iters=60", "--json=second.json", cwd=tmp_path)
    second = json.loads((tmp_path / "second.json").read_text())
    began = re.search(r"iteration (\d+): train loss [\d.]+, validation loss ([\d.]+)", said)
    assert began is not None and began[1] == "30"  # and so with the learning rate of iteration 30
    assert float(began[2]) == pytest.approx(first["val_loss"], abs=0.2)  # other crops of the same text
    assert second["iterations"] == 60 and second["val_loss"] < first["val_loss"]

    written = shoal("sample", "out/gpt", "--prompt=the ", "--tokens=20", cwd=tmp_path)
    assert written.startswith("the ") and len(written.rstrip("\n")) <= 24

    folder = Folder(tmp_path / "out/gpt")
    early, late = (load(folder, folder.snapshot(iterations))[0] for iterations in (30, 60))
    final, tokenizer = load(folder)
    assert all(map(torch.equal, late.parameters(), final.parameters()))
    assert not any(map(torch.equal, early.parameters(), final.parameters()))
    options = ("--prompt=the ", "--tokens=40", "--temperature=0")
    then = write(early, tokenizer, 40, prompt="the ", temperature=0.0)
    assert shoal("sample", "out/gpt/snapshot-000030", *options, cwd=tmp_path) == then + "\n"
    assert write(final, tokenizer, 40, prompt="the ", temperature=0.0) != then


def test_a_run_with_dropout_goes_on_to_the_bit_from_where_it_keeps_its_snapshots(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    options = [
        f"--{name}={getattr(SMALL, name)}"
        for name in ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "warmup_iters", "learning_rate")
    ]
    shelf = f"file://{tmp_path}/shelf"
    options += ["--dropout=0.3", "--max-iters=24", "--snapshot-interval=6", f"--snapshots={shelf}", "--keep=2"]
    said = shoal("train", "gpt", "--text=text.txt", *options, "--out=whole", cwd=tmp_path)
    assert sorted(item.name for item in (tmp_path / "shelf").iterdir()) == ["snapshot-000018", "snapshot-000024"]
    assert f"snapshot: {shelf}/snapshot-000024" in said
    whole = load(Folder(tmp_path / "whole"))[0]
    assert Folder(tmp_path / "whole").last_snapshot() == (f"{shelf}/snapshot-000024", 24)

    shoal("train", "gpt", f"--resume={shelf}/snapshot-000018", "--out=whole", cwd=tmp_path)
    again = Folder(tmp_path / "whole")
    assert again.settings().done_iters == 18
    assert all(map(torch.equal, load(again)[0].parameters(), whole.parameters()))


def test_two_workers_learn_what_one_process_alone_learns(tmp_path: Path) -> None:
    alone = prepared(tmp_path / "alone", replace(SMALL, workers=1))
    command = [sys.executable, "-m", "shoal.recipes.gpt.worker", str(alone.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    spread = prepared(tmp_path / "spread", replace(SMALL, workers=2))
    assert launch(("-m", "shoal.recipes.gpt.worker", str(spread.path)), 2, 2, on_line=lambda *_: None) == 0
    assert outcome(spread).val_loss == pytest.approx(outcome(alone).val_loss, abs=1e-3)
    assert outcome(spread).train_loss == pytest.approx(outcome(alone).train_loss, abs=1e-3)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_worker_comes_back_and_the_run_ends_as_it_should(tmp_path: Path, rank: int) -> None:
    folder = prepared(tmp_path / "run", replace(SMALL, max_iters=400))
    last: list[Status] = []
    said: list[str] = []

    def watch(status: Status) -> None:
        victim = next((member for member in status.members if member.name == f"worker/{rank}"), None)
        if not last and victim is not None and status.samples_committed > 0:
            os.kill(victim.pid, signal.SIGKILL)
        if last or status.samples_committed > 0:
            last.append(status)

    command = ("-m", "shoal.recipes.gpt.worker", str(folder.path))
    assert launch(command, 2, 2, on_status=watch, on_line=lambda source, text: said.append(text)) == 0
    assert any("started again" in text for text in said), said
    assert last[0].samples_committed < last[0].samples  # it died on the way
    assert outcome(folder).iterations == 400 and outcome(folder).val_loss < 1.0
    assert folder.last_snapshot() == (folder.snapshot(400), 400) and folder.sample.exists()


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["bounded", "async"])
def test_workers_that_do_not_wait_learn_too(tmp_path: Path, sync: str) -> None:
    folder = prepared(tmp_path / "run", replace(SMALL, max_iters=200, sync=sync, snapshot_interval=50))
    assert launch(("-m", "shoal.recipes.gpt.worker", str(folder.path)), 2, 2, on_line=lambda *_: None) == 0
    assert outcome(folder).val_loss < 1.5
    assert folder.snapshot(50).exists() or len(list(folder.path.glob("snapshot-*"))) >= 2


@pytest.mark.slow
def test_byte_pairs_train_too(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    said = shoal(
        "train", "gpt", "--text=text.txt", "--tokenizer=bpe", "--vocab-size=300", "--n_embd=32", "--block_size=16",
        "--max_iters=30", "--sync=async", "--out=bpe", cwd=tmp_path,
    )  # fmt: skip
    assert "validation loss" in said
    assert shoal("sample", "bpe", "--prompt=völlig neu", "--tokens=5", cwd=tmp_path).startswith("völlig neu")
