"""A run's options: one clear error for what cannot work, and nanoGPT's learning rate."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.errors import ConfigurationError, SnapshotError
from shoal.optim import DelayedNesterov, Nesterov
from shoal.policy import Async, Bounded, Sync
from shoal.recipes.gpt.folder import Folder, Result, iterations_of
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import make_tokenizer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 130}, "n_embd=130 cannot work: it must be a multiple of n_head=4"),
        ({"n_head": 0}, "n_head=0 cannot work: it must be at least 1"),
        ({"batch_size": 13}, "batch_size=13 cannot work: it must be a multiple of workers=2"),
        ({"workers": 0}, "workers=0"),
        ({"dropout": 1.0}, r"dropout=1.0 .* lie in \[0, 1\)"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"min_lr": 0.1}, "min_lr=0.1 .* not be above learning_rate=0.001"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "vocab_size=256"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 .* 0 or more"),
        ({"push": "int7"}, "push=int7 cannot work: it must be one of float32, .*powersgd8"),
        ({"pull": "powersgd1"}, "pull=powersgd1"),
        ({"every": -1}, "every=-1"),
        ({"every": 50, "max_iters": 120}, "max_iters=120 .* be a multiple of every=50"),
        ({"every": 50, "snapshot_interval": 75}, "snapshot_interval=75"),
        ({"quorum": 0.0}, "quorum=0.0"),
        ({"max_iters": 0}, "max_iters=0"),
        ({"max_iters": 500, "done_iters": 500}, "max_iters=500 .* above the 500 iterations that the snapshot has seen"),
    ],
)
def test_what_cannot_work_is_named_with_the_rule(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Settings(**options)


def test_the_policy_follows_sync() -> None:
    assert Settings(quorum=0.5).policy == Sync(0.5)
    assert Settings(sync="bounded", staleness=2).policy == Bounded(2)
    assert Settings(sync="async").policy == Async()
    assert Settings(grad_clip=0).clip_norm is None and Settings(grad_clip=2).clip_norm == 2


def test_asynchronous_windows_have_delayed_momentum() -> None:
    assert Settings(every=50).outer == Nesterov(lr=0.7, momentum=0.9)
    assert Settings(every=50, sync="async", workers=3).outer == DelayedNesterov(every=3)


def test_the_learning_rate_warms_up_then_falls_by_half_a_cosine() -> None:
    settings = Settings(learning_rate=1.0, min_lr=0.1, warmup_iters=10, max_iters=110)
    assert settings.rate(0) == pytest.approx(1 / 11)
    assert settings.rate(9) == pytest.approx(10 / 11)
    assert settings.rate(10) == 1.0
    assert settings.rate(60) == pytest.approx(0.55)
    assert settings.rate(35) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert settings.rate(110) == settings.rate(10_000) == 0.1
    assert replace(settings, lr_decay_iters=60).rate(60) == 0.1
    assert replace(settings, lr_decay_iters=5).rate(10) == 0.1  # decayed before it was warm


def test_a_run_comes_back_from_its_folder(tmp_path: Path) -> None:
    folder, settings, tokenizer = (
        Folder(tmp_path / "run"),
        Settings(n_layer=3, sync="async"),
        make_tokenizer("ab\n", "char", 0),
    )
    folder.begin(settings, tokenizer)
    assert folder.settings() == settings and folder.tokenizer() == tokenizer and folder.result() is None
    assert 0 <= folder.seconds() < 60
    result = Result(1.5, 1.25, 2000, 64, 3.5, "here")
    assert folder.finished() is None
    finish(folder, result)
    assert folder.result() == result
    before = folder.finished()
    folder.begin(settings, tokenizer)
    assert folder.result() == result and folder.finished() == before  # it stays until there is a new one
    finish(folder, result)
    assert folder.finished() != before  # and yet never passes for it


def finish(folder: Folder, result: Result) -> None:
    for outcome in (folder.model, folder.sample):
        folder.draft(outcome).touch()
    folder.finish(result)


def test_a_folder_is_taken_by_what_one_can_go_on_with_or_by_a_run_that_goes_on(tmp_path: Path) -> None:
    folder, other = Folder(tmp_path / "run"), Folder(tmp_path / "run")
    folder.begin(Settings(), make_tokenizer("ab\n", "char", 0))
    folder.snapshot(5).mkdir()
    assert not folder.taken  # that snapshot was not completed
    with folder.held():
        assert other.taken and Folder.fresh(folder.path).path.name == "run-2"
        with pytest.raises(ConfigurationError, match="another process trains in .*run right now"), other.held():
            pass
    assert Folder.fresh(folder.path) == folder
    (folder.snapshot(5) / "manifest.json").touch()
    assert folder.taken


def test_the_last_snapshot_has_the_most_iterations(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.begin(Settings(), make_tokenizer("ab", "char", 0))
    with pytest.raises(SnapshotError, match="holds no snapshot"):
        folder.last_snapshot()
    for iterations in (900, 2_000_000, 1000):
        folder.snapshot(iterations).mkdir()
        (folder.snapshot(iterations) / "manifest.json").touch()
    folder.snapshot(3_000_000).mkdir()  # cut short: without a manifest it is none
    assert folder.last_snapshot() == (tmp_path / "snapshot-2000000", 2_000_000)
    assert Folder.of(folder.snapshot(900)).path == tmp_path and Folder.of(tmp_path).path == tmp_path
    with pytest.raises(SnapshotError, match="named snapshot-<iterations>"):
        iterations_of(tmp_path / "elsewhere")


def test_a_taken_folder_is_passed_over(tmp_path: Path) -> None:
    for expected in ("gpt", "gpt-2", "gpt-3"):
        folder = Folder.fresh(tmp_path / "gpt")
        assert folder.path == tmp_path / expected
        folder.begin(Settings(), make_tokenizer("ab", "char", 0))
        finish(folder, Result(1.5, 1.25, 2000, 64, 3.5, "here"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="is not a GPT run"):
        Folder.of(tmp_path)
    (tmp_path / "settings.json").write_text('{"n_layer": "many"}')
    with pytest.raises(SnapshotError, match="n_layer"):
        Folder(tmp_path).settings()
