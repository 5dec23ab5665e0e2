"""The commands of docs/snapshots.md do what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.storage.shelf import prune

from ..storage.snapshots import write

PAGE = Path(__file__).parents[2] / "docs" / "snapshots.md"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for version in (100, 200):
        write(Path(f"out/gpt/snapshot-000{version}"), version, seed=version)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    statuses = {}
    for line in block.splitlines():
        _, *arguments = shlex.split(line, comments=True)
        statuses[arguments[1]] = CliRunner().invoke(app, arguments).exit_code
    assert statuses == {"ls": 0, "verify": 0, "export": 0, "diff": 1}
    assert Path("exported.safetensors").exists()
    assert prune("out/gpt", keep=3) == []
