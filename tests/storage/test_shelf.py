"""Many snapshots below one directory: the old ones go, the newest whole one never does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.errors import ConfigurationError
from shoal.storage.place import place
from shoal.storage.shelf import find, prune, snapshots, verify

from .snapshots import write


def names(parent: Path) -> list[str]:
    return sorted(item.name for item in parent.iterdir())


def cut_off(directory: Path, seconds_ago: float) -> None:
    """As a crash leaves it: two shards and half of a third file, no manifest."""
    write(directory, 1)
    (directory / "manifest.json").unlink()
    (directory / "model.safetensors").rename(directory / ".model.safetensors.77.tmp")
    for item in directory.iterdir():
        when = item.stat().st_mtime - seconds_ago
        os.utime(item, (when, when))


def test_the_oldest_go(tmp_path: Path) -> None:
    for version in (3, 1, 2, 4):  # by when they were written: a job that went back counts anew
        write(tmp_path / f"snapshot-{version}", version, seed=version)
    assert [item.place.name for item in snapshots(place(tmp_path))] == [f"snapshot-{n}" for n in (3, 1, 2, 4)]
    removed = prune(tmp_path, keep=2)
    assert removed == [str(tmp_path / "snapshot-3"), str(tmp_path / "snapshot-1")]
    assert names(tmp_path) == ["snapshot-2", "snapshot-4"]
    assert prune(tmp_path, keep=2) == []
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["snapshot-4"]
    verify(tmp_path / "snapshot-4")


def test_the_newest_whole_one_stays_whatever_is_newer(tmp_path: Path) -> None:
    write(tmp_path / "whole", 1, seed=1)
    write(tmp_path / "truncated", 2, seed=2)
    (tmp_path / "truncated" / "shard-0-of-2.safetensors").write_bytes(b"")
    write(tmp_path / "garbled", 3, seed=3)
    (tmp_path / "garbled" / "manifest.json").write_bytes(b"{}")
    cut_off(tmp_path / "on its way", seconds_ago=0)
    assert prune(tmp_path, keep=1) == []
    assert names(tmp_path) == ["garbled", "on its way", "truncated", "whole"]
    with pytest.raises(ConfigurationError, match="keep=0 must be 1 or more"):
        prune(tmp_path, keep=0)


def test_what_was_cut_off_goes_once_there_is_a_newer_one(tmp_path: Path) -> None:
    cut_off(tmp_path / "cut off", seconds_ago=60)
    assert prune(tmp_path, keep=3) == [], "there is no whole one yet"
    write(tmp_path / "whole", 2, seed=2)
    assert prune(tmp_path, keep=3) == [str(tmp_path / "cut off")]
    assert names(tmp_path) == ["whole"]


def test_nobody_elses_files_go(tmp_path: Path) -> None:
    write(tmp_path / "old", 1, seed=1)
    (tmp_path / "old" / "notes.txt").write_text("mine")
    cut_off(tmp_path / "cut off", seconds_ago=60)
    (tmp_path / "cut off" / "notes.txt").write_text("mine")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model.safetensors").write_text("mine")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "new", 2, seed=2)
    (tmp_path / "latest").symlink_to("old")
    assert prune(tmp_path, keep=1) == [str(tmp_path / "old")]
    assert names(tmp_path) == ["cut off", "empty", "exported", "latest", "new", "old"]
    assert names(tmp_path / "old") == ["notes.txt"]
    assert len(names(tmp_path / "cut off")) == 4


def test_half_removed_it_is_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "old", 1, seed=1)
    write(tmp_path / "new", 2, seed=2)
    unlink = Path.unlink

    def unlink_once(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", unlink_once)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, keep=1)
    monkeypatch.undo()
    found = {item.place.name: item.wrong for item in find(tmp_path)}
    assert found == {"old": "incomplete: it has no manifest.json", "new": ""}
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["new"]


def test_find_takes_one_or_what_holds_some(tmp_path: Path) -> None:
    write(tmp_path / "one")
    assert [item.place.name for item in find(tmp_path / "one")] == ["one"]
    assert [item.place.name for item in find(tmp_path)] == ["one"]
    with pytest.raises(ConfigurationError, match="there is no snapshot at .*elsewhere, and none directly below it"):
        find(tmp_path / "elsewhere")
