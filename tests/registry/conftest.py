"""Both registries as one fixture, and the etcd that the tests of a session share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .home import Home
from .members import Members, needs_etcd


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    needs_etcd()
    with Members(tmp_path_factory.mktemp("etcd")) as members:
        members.leader()
        yield members


@pytest.fixture(params=["embedded", "etcd"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """Where a job of this test alone has its registry."""
    if request.param == "embedded":
        return Home(f"file://{tmp_path / 'registry'}")
    return Home(request.getfixturevalue("etcd").url)


@pytest.fixture
def campaigner() -> Iterator[Callable[[Home, str], subprocess.Popen[str]]]:
    """Starts processes that campaign; none outlives the test."""
    children: list[subprocess.Popen[str]] = []

    def start(home: Home, name: str) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("campaigner.py")
        command = [sys.executable, str(script), home.url, home.job, name, str(home.lease_ms)]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
