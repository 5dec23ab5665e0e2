"""`shoal train gpt` before anything starts: its options, and one line for each mistake."""

from pathlib import Path
from typing import get_type_hints

import pytest
from typer.testing import CliRunner

from shoal.cli.train import train
from shoal.errors import ShoalError
from shoal.recipes.gpt.folder import Folder
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import make_tokenizer


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Settings, int, Path | None]]:
    """Runs that would have started, in an empty working directory: (settings, servers, snapshot)."""
    seen: list[tuple[Settings, int, Path | None]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "shoal.cli.train._run",
        lambda folder, settings, servers, max_restarts, snapshot: seen.append((settings, servers, snapshot)),
    )
    (tmp_path / "text.txt").write_text("some text to learn\n" * 100)
    return seen


def invoke(*arguments: str) -> str:
    """What the command says; the error's text where it raises one."""
    outcome = CliRunner().invoke(train, ["gpt", *arguments])
    assert outcome.exit_code != 0
    if isinstance(outcome.exception, ShoalError):
        return str(outcome.exception)
    assert isinstance(outcome.exception, SystemExit), outcome.exception
    return outcome.output


def test_every_setting_is_an_option_with_help() -> None:
    shown = " ".join(CliRunner().invoke(train, ["gpt", "--help"]).output.split())
    for name, hint in get_type_hints(Settings, include_extras=True).items():
        if name != "done_iters":
            assert f"--{name.replace('_', '-')}" in shown and hint.__metadata__[0] in shown
    assert "--done-iters" not in shown


def test_both_spellings_reach_the_run(launched: list[tuple[Settings, int, Path | None]]) -> None:
    invoke("--text", "text.txt", "--n_layer=2", "--n-head", "2", "--max_iters", "7", "--sync", "async", "--servers=3")
    settings, servers, snapshot = launched[0]
    assert (settings.n_layer, settings.n_head, settings.max_iters, settings.sync) == (2, 2, 7, "async")
    assert (servers, snapshot) == (3, None) and settings.text == str(Path("text.txt").resolve())
    assert Folder(Path("out/gpt")).settings() == settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_embd=130"], "n_embd=130 cannot work"),
        (["--text", "missing.txt"], "missing.txt does not exist"),
        (["--text", "text.txt", "--block-size", "500"], "too few for one crop of block_size=500"),
        (["--sync", "never"], "'never' is not one of 'sync', 'bounded', 'async'"),
        (["--n-layer", "two"], "--n-layer"),
        (["--resume", "nowhere"], "nowhere is not a GPT run"),
        (["--text", "text.txt", "--json", "no/such/folder.json"], "cannot write --json"),
    ],
)
def test_a_mistake_is_one_error_and_starts_nothing(
    launched: list[tuple[Settings, int, Path | None]], arguments: list[str], message: str
) -> None:
    assert message in invoke(*arguments)
    assert not launched and not Path("out").exists()


def test_a_run_that_ends_without_a_result_says_so(launched: list[tuple[Settings, int, Path | None]]) -> None:
    assert "ended without a result" in invoke("--text", "text.txt")
    assert len(launched) == 1


def test_a_named_folder_is_not_written_over(launched: list[tuple[Settings, int, Path | None]]) -> None:
    invoke("--text", "text.txt", "--out", "mine")
    assert "mine holds a run already" in invoke("--text", "text.txt", "--out", "mine")
    invoke("--text", "text.txt")
    invoke("--text", "text.txt")
    assert Path("out/gpt").is_dir() and Path("out/gpt-2").is_dir() and len(launched) == 3


def test_resuming_keeps_the_options_and_takes_the_given_ones(launched: list[tuple[Settings, int, Path | None]]) -> None:
    folder = Folder(Path("run"))
    folder.begin(
        Settings(text=str(Path("text.txt").resolve()), n_layer=2, max_iters=50),
        make_tokenizer("some text to learn\n", "char", 0),
    )
    for iterations in (30, 50):
        folder.snapshot(iterations).mkdir()
        (folder.snapshot(iterations) / "manifest.json").touch()
    assert "above the 50 iterations" in invoke("--resume", "run")
    assert "n_layer=3 cannot be changed" in invoke("--resume", "run", "--n-layer", "3", "--max-iters", "80")
    assert not launched
    invoke("--resume", "run", "--max-iters", "80", "--learning_rate", "5e-4")
    invoke("--resume", "run/snapshot-000030")
    (first, _, first_snapshot), (second, _, second_snapshot) = launched
    assert (first.n_layer, first.max_iters, first.done_iters, first.learning_rate) == (2, 80, 50, 5e-4)
    assert (second.max_iters, second.done_iters) == (80, 30)  # the run's options now
    assert (first_snapshot, second_snapshot) == (Path("run/snapshot-000050"), Path("run/snapshot-000030"))
