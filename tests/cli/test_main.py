"""The command line: quick to start, and one line instead of a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.version import __version__


def shoal(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_version() -> None:
    assert shoal("--version").stdout == f"shoal {__version__}\n"


def test_help_loads_neither_torch_nor_numba() -> None:
    program = """
import sys
sys.argv = ["shoal", "--help"]
from shoal.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "numba"} & set(sys.modules)
    assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "run" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "missing.py"), "there is no script at missing.py"),
        (("run", "--workers", "0", "missing.py"), "at least 1 of its workers"),
        (("run", "--servers", "0", "missing.py"), "at least 1 of its servers"),
        (("run", "--bogus", __file__), "no such option --bogus"),
        (("run", "--workers", "1", "--serves=2", __file__), "no such option --serves=2"),
        (("run", "--resume", "/nowhere", __file__), "no snapshot at /nowhere"),
        (("status", "nonsense"), "'nonsense' is not an address"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments: tuple[str, ...], words: str) -> None:
    result = shoal(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("shoal: error: ")
    assert words in line


def test_an_option_of_the_script_is_the_scripts(tmp_path: Path) -> None:
    program = """
import sys
from shoal.launch import local
local.launch = lambda command, workers, servers, **options: print(command, workers, servers) or 7
sys.argv = ["shoal", "run", "--workers", "3", "-m", "a.b", "--workers", "9", "--help", "-x"]
from shoal.cli.main import main
main()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "['-m', 'a.b', '--workers', '9', '--help', '-x'] 3 1\n", result.stderr
    assert result.returncode == 7
