"""The classic case: figures that one can check by hand, alone and over two workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.launch.local import launch

SCRIPT = str(Path(__file__).parents[2] / "examples" / "linear_regression.py")
EXPECTED = [
    "step 1: gradient (-10.0000, -5.0000), parameters (0.1000, 0.0500)",
    "step 2: gradient (-8.7500, -4.3241), parameters (0.1875, 0.0932)",
    "step 1500: gradient (0.0000, 0.0000), parameters (1.0000, 0.0000)",
]


def unsigned_zeros(lines: list[str]) -> list[str]:
    return [line.replace("-0.0000", "0.0000") for line in lines]


def test_alone() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert unsigned_zeros(done.stdout.splitlines()) == EXPECTED


@pytest.mark.parametrize(("workers", "servers"), [(2, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_spread_over_workers(workers: int, servers: int) -> None:
    said: list[str] = []
    assert launch((SCRIPT,), workers, servers, on_line=lambda source, text: said.append(f"{source}: {text}")) == 0
    assert unsigned_zeros([line for line in said if "step" in line]) == [f"worker 0: {line}" for line in EXPECTED]
