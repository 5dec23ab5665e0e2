"""A job is found while its launcher lives, by its owner alone, and no longer."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shoal.launch.jobs import JobRecord, directory, published, running

RECORD = JobRecord("a", "tcp://127.0.0.1:1", "secret", 11)


def test_a_job_is_found_inside_the_block_only(job_files: Path) -> None:
    with published(RECORD):
        assert running() == [RECORD]
    assert running() == []
    assert list(job_files.iterdir()) == []


def test_jobs_come_oldest_first() -> None:
    second = JobRecord("b", "tcp://127.0.0.1:2", "secret", 7)
    with published(RECORD), published(second):
        assert running() == [RECORD, second]


def test_only_the_owner_may_read(job_files: Path) -> None:
    with published(RECORD):
        (file,) = job_files.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(job_files.stat().st_mode) == 0o700


def test_a_file_that_a_killed_launcher_left_is_no_job(job_files: Path) -> None:
    with published(RECORD):
        (file,) = job_files.iterdir()
        content = file.read_bytes()
    file.write_bytes(content)  # nobody holds its lock
    assert running() == []
    assert not file.exists()


def test_without_a_directory_there_are_no_jobs(tmp_path: Path) -> None:
    assert running(tmp_path / "missing") == []


def test_the_runtime_directory_comes_before_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert directory({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/shoal")
    monkeypatch.setenv("HOME", "/home/someone")
    assert directory({}) == Path("/home/someone/.cache/shoal/jobs")
