"""What holds for every test: one thread a process, and no trace in the user's own directories."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch or numba is first imported
os.environ.setdefault("NUMBA_NUM_THREADS", "2")

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shoal", deadline=None, print_blob=True)
settings.load_profile("shoal")


@pytest.fixture(autouse=True)
def job_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the jobs of this test are found, and no others."""
    place = tmp_path_factory.mktemp("jobs")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    return place / "shoal"
