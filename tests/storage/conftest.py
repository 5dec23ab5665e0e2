"""A place for a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where nothing of another test lies beside."""
    return tmp_path / "one"
