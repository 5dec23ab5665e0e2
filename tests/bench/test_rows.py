"""The JSON that every benchmark writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.bench.rows import Row, Seconds, check_writable, write
from shoal.errors import ConfigurationError

FIELDS = (
    "bench", "params", "workers", "servers", "transport", "policy", "optimizer", "peer", "seconds", "ratio",
    "floor_share",
)  # fmt: skip


def test_a_row_has_the_agreed_fields_and_writes_as_json(tmp_path: Path) -> None:
    row = Row(
        bench="exchange", params=10, workers=2, servers=1, transport="tcp", policy="Sync()", optimizer="sgd",
        peer=None, seconds=Seconds.of([3.0, 1.0, 2.0, 9.0]), ratio=None, floor_share=0.5,
    )  # fmt: skip
    write(tmp_path / "rows.json", [row])
    (written,) = json.loads((tmp_path / "rows.json").read_text())
    assert tuple(written) == FIELDS
    assert written["seconds"] == {"min": 1.0, "median": 2.5, "max": 9.0, "samples": 4}


def test_a_folder_that_is_not_there_is_found_before_measuring(tmp_path: Path) -> None:
    check_writable(None)
    check_writable(tmp_path / "new.json")
    with pytest.raises(ConfigurationError, match="does not exist"):
        check_writable(tmp_path / "missing" / "new.json")
