"""Whether the checks of the fire tests see what they are there to see: they look at notes alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from .campaign import check, planned
from .job import Burnt, Job, Setting
from .notes import Notes

RESULT = {"version": 6, "passes": 1, "digest": "same", "least": 1.0, "most": 1.0}
# [seconds, pid, clock, version, checksum, pass, samples]
ONE = [[1.0, 5, 1, 2, 70, 0, [0]], [2.0, 5, 2, 4, 71, 0, [1]], [3.0, 5, 3, 6, 72, 0, [2]]]
OTHER = [[1.0, 6, 1, 2, 70, 0, [3]], [2.5, 6, 2, 5, 71, 0, [4]], [3.0, 6, 3, 6, 72, 0, [5]]]


def checked(folder: Path, *ranks: list[list[Any]], model: str = "counting:sync") -> Notes:
    for rank, lines in enumerate(ranks):
        (folder / f"notes-{rank}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    notes = Notes(folder)
    notes.look()
    check(cast(Job, SimpleNamespace(notes=notes, setting=Setting(model))), [RESULT])
    return notes


def test_one_clock_may_be_of_two_versions_with_the_same_parameters(tmp_path: Path) -> None:
    notes = checked(tmp_path, ONE, OTHER)
    assert notes.clock == 3 and notes.version == 6
    assert [version for _, version in notes.commits] == [2, 4, 5, 6]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (4, 99, "different parameters after one clock"),
        (6, [1], "samples acknowledged twice"),
        (2, 1, "went from"),
        (3, 1, "went from"),
    ],
)
def test_what_is_wrong_in_a_note_is_found(tmp_path: Path, place: int, value: object, words: str) -> None:
    wrong = [list(line) for line in OTHER]
    wrong[1][place] = value
    with pytest.raises(Burnt, match=words):
        checked(tmp_path, ONE, wrong)


def test_one_version_has_the_same_parameters_under_every_policy(tmp_path: Path) -> None:
    wrong = [[1.0, 6, 4, 2, 99, 0, [3]], [2.5, 6, 5, 5, 71, 0, [4]]]
    with pytest.raises(Burnt, match="different parameters at one version"):
        checked(tmp_path, ONE, wrong, model="counting:async")


def test_the_last_note_of_a_worker_that_was_taken_for_dead_is_not_compared(tmp_path: Path) -> None:
    """It was stopped after its step: meanwhile the others changed the memory that it shares with them."""
    checked(tmp_path, ONE, [*OTHER[:1], [2.5, 6, 2, 4, 99, 0, [4]]])


def test_eight_jobs_in_a_row_are_of_every_model_over_every_transport() -> None:
    settings = [(setting.model, setting.transport) for _, setting, _ in planned(seed=1, faults=16, per_job=2)]
    assert len(set(settings)) == len(settings) == 8
