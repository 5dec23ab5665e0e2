"""`shoal train gpt` before anything starts: its options, and one line for each mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.testing import CliRunner

from shoal.cli import train as command
from shoal.cli.train import train
from shoal.errors import ShoalError
from shoal.recipes.gpt.folder import Folder, Result
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import make_tokenizer
from shoal.storage.snapshot import write_manifest
from shoal.vocabulary import PolicySpec, TableSpec


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Settings, int, Path | None]]:
    """Runs that would have started, in an empty working directory: (settings, servers, snapshot)."""
    seen: list[tuple[Settings, int, Path | None]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "shoal.cli.train._run",
        lambda folder, settings, servers, _, restarts, snapshot, *more: seen.append((settings, servers, snapshot)),
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


RESULT = Result(1.5, 1.25, 50, 64, 3.5, "here")


def finish(folder: Folder) -> None:
    """What worker 0 does in the end."""
    folder.draft(folder.model).write_text("a model")
    folder.draft(folder.sample).write_text("a sample")
    folder.finish(RESULT)


def snapshot(folder: Folder, iterations: int) -> None:
    table = TableSpec((), "adamw", (), PolicySpec("sync"))
    write_manifest(folder.snapshot(iterations), "job", iterations, iterations, (), table)


def finished_run(path: str) -> Folder:
    """A run of 50 iterations, with snapshots after 30 and 50."""
    folder = Folder(Path(path))
    text = str(Path("text.txt").resolve())
    folder.begin(Settings(text=text, n_layer=2, max_iters=50), make_tokenizer("some text to learn\n", "char", 0))
    for iterations in (30, 50):
        folder.snapshot(iterations).mkdir()
        snapshot(folder, iterations)
    finish(folder)
    return folder


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
        (["--text", "text.txt", "--json", "."], "cannot write --json .: Is a directory"),
        (["--text", "text.txt", "--servers", "0"], "at least 1 of its servers"),
        (["--text", "text.txt", "--max-restarts", "-1"], "max_restarts=-1"),
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
    finished_run("mine")
    assert "mine holds a run already" in invoke("--text", "text.txt", "--out", "mine")
    finished_run("other")
    assert "mine holds another run already" in invoke("--resume", "other", "--out", "mine", "--max-iters", "80")
    assert not launched
    finished_run("out/gpt")
    invoke("--text", "text.txt")
    assert Path("out/gpt-2").is_dir() and len(launched) == 1


def test_a_run_that_came_to_nothing_blocks_no_folder(launched: list[tuple[Settings, int, Path | None]]) -> None:
    assert "at least 1 of its servers" in invoke("--text", "text.txt", "--out", "so", "--servers", "0")
    assert not Path("so").exists()
    invoke("--text", "text.txt", "--out", "so")
    said = invoke("--resume", "so", "--max-iters", "80")
    assert "so holds no snapshot" in said and "start it anew with --out so" in said
    invoke("--text", "text.txt", "--out", "so")
    assert len(launched) == 2


@pytest.mark.parametrize("refused", [("--servers", "0"), ("--max-restarts", "-1"), ("--json", "."), ()])
def test_a_resume_that_fails_takes_nothing_away(
    launched: list[tuple[Settings, int, Path | None]], refused: tuple[str, ...]
) -> None:
    folder = finished_run("run")
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    said = invoke("--resume", "run", "--max-iters", "80", *refused)
    if refused:
        assert before == {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
        assert not launched
    else:
        assert "ended without a result" in said and "--resume run" in said  # that of before is not taken for it
    assert folder.result() == RESULT and folder.model.exists() and folder.sample.exists()


def test_a_snapshot_that_cannot_be_read_is_refused_first(launched: list[tuple[Settings, int, Path | None]]) -> None:
    folder = finished_run("run")
    (folder.snapshot(50) / "manifest.json").write_text("{")
    assert "manifest.json" in invoke("--resume", "run", "--max-iters", "80")
    assert not launched and folder.result() == RESULT and folder.settings().max_iters == 50


def test_the_result_is_shown_before_it_cannot_be_written(
    launched: list[tuple[Settings, int, Path | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Folder, *_: object) -> None:
        finish(folder)
        Path("result.json").mkdir()

    monkeypatch.setattr(command, "_run", run)
    outcome = CliRunner().invoke(train, ["gpt", "--text", "text.txt", "--json", "result.json"])
    assert "validation loss 1.5000" in outcome.output and "the run's folder: out/gpt" in outcome.output
    assert isinstance(outcome.exception, ShoalError)
    assert "--json result.json cannot be written: Is a directory" in str(outcome.exception)


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_is_interrupted_tells_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some text to learn\n" * 100)

    def launch(*arguments: object, way_on: Callable[[], str], **_: object) -> int:
        if kept:
            folder = Folder(Path("out/gpt"))
            folder.snapshot(5).mkdir()
            snapshot(folder, 5)
        assert way_on() == Folder(Path("out/gpt")).way_on()  # what an error of the launcher says
        return 130

    monkeypatch.setattr("shoal.launch.local.launch", launch)
    outcome = CliRunner().invoke(train, ["gpt", "--text", "text.txt"])
    assert outcome.exit_code == 130
    assert "the run's folder: out/gpt" in outcome.output
    way_on = "--resume out/gpt" if kept else "start it anew with --out out/gpt"
    assert f"exit status 130; {Folder(Path('out/gpt')).way_on()}" in outcome.output and way_on in outcome.output


def test_resuming_keeps_the_options_and_takes_the_given_ones(launched: list[tuple[Settings, int, Path | None]]) -> None:
    finished_run("run")
    assert "above the 50 iterations" in invoke("--resume", "run")
    assert "n_layer=3 cannot be changed" in invoke("--resume", "run", "--n-layer", "3", "--max-iters", "80")
    assert not launched
    invoke("--resume", "run", "--max-iters", "80", "--learning_rate", "5e-4")
    invoke("--resume", "run/snapshot-000030")
    (first, _, first_snapshot), (second, _, second_snapshot) = launched
    assert (first.n_layer, first.max_iters, first.done_iters, first.learning_rate) == (2, 80, 50, 5e-4)
    assert (second.max_iters, second.done_iters) == (80, 30)  # the run's options now
    assert (first_snapshot, second_snapshot) == (Path("run/snapshot-000050"), Path("run/snapshot-000030"))
