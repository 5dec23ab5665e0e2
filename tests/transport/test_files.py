"""A process that will hold many connections may, or learns at its start why not."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys
from shoal.errors import ConfigurationError
from shoal.transport.files import allow
soft, hard, connections, wished = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    allow(connections, wished)
except ConfigurationError as error:
    print(error)
else:
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def after(soft: int, hard: int, connections: int, wished: int = 0) -> str:
    arguments = [sys.executable, "-c", PROGRAM, *map(str, (soft, hard, connections, wished))]
    return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_the_soft_limit_is_raised_as_far_as_needed() -> None:
    assert after(256, 2000, 1000) == "1128 2000"


def test_a_limit_that_is_high_enough_stays() -> None:
    assert after(1500, 2000, 1000) == "1500 2000"


def test_what_is_wished_is_taken_as_far_as_it_goes() -> None:
    assert after(256, 2000, 100, wished=900) == "1028 2000"
    assert after(256, 2000, 100, wished=9000) == "2000 2000"


def test_too_low_a_hard_limit_is_an_error_that_says_what_to_do() -> None:
    said = after(256, 512, 1000)
    assert said.startswith("1000 connections need 1128 open files, and the system allows this process 512: raise")
    assert "ulimit -Hn 1128" in said
