"""The short form of `make chaos`: one job, and the faults that matter most."""

from __future__ import annotations

from pathlib import Path

import pytest

from .campaign import burn
from .faults import NAMED
from .job import Setting

SEED = 1
SETTING = Setting("counting:sync", workers=2, servers=2, lease_ms=4000, pause=0.03)
KINDS = (
    "SIGKILL primary",
    "SIGKILL worker",
    "SIGKILL coordinator",
    "SIGKILL backup",
    "SIGSTOP server",
    "SIGKILL primary",
)


@pytest.mark.timeout(300)  # half a minute, where no other tests take the machine's time
def test_every_sample_counts_once_though_one_process_after_the_other_is_lost(tmp_path: Path) -> None:
    outcome = burn(0, SETTING, [NAMED[name] for name in KINDS], SEED, tmp_path)
    assert not outcome.wrong, (outcome.wrong, (tmp_path / "output.txt").read_text()[-5000:])
    assert len(outcome.faults) == len(KINDS) and outcome.samples > 0
