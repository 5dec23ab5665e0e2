"""Where a registry is: what is understood, what is refused, and that no password shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal import registry
from shoal.errors import ConfigurationError
from shoal.registry.url import EtcdAddress, parsed_directory, parsed_etcd

from .members import needs_etcd


def test_what_is_understood(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "password").write_text("p@ss/word\n")
    assert parsed_directory("file:///a/b%20c") == Path("/a/b c")
    assert parsed_etcd("etcd://host") == EtcdAddress(("host:2379",))
    assert parsed_etcd("etcd://a:1,b.c:2,[::1]/") == EtcdAddress(("a:1", "b.c:2", "[::1]:2379"))
    assert parsed_etcd("etcd://user:p%40ss%2Fword@a:1") == EtcdAddress(("a:1",), user="user", password="p@ss/word")
    assert parsed_etcd(f"etcd://user@a:1?password_file={tmp_path}/password").password == "p@ss/word"
    assert parsed_etcd(f"etcds://a:1?ca={tmp_path}/ca&cert={tmp_path}/cert&key={tmp_path}/key") == EtcdAddress(
        ("a:1",), tls=True, ca=b"ca", certificate=b"cert", key=b"key"
    )


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must start with file://, etcd:// or etcds://"),
        ("host:2379", "must start with"),
        ("redis://user:secret@host", "must start with"),
        ("file://relative/path", "write file:///absolute/path"),
        ("file:///a?b=c", "write file:///absolute/path"),
        ("etcd://", "write host:port"),
        ("etcd://a,,b", "write host:port"),
        ("etcd://a:0", "write host:port"),
        ("etcd://a:66000", "write host:port"),
        ("etcd://a b", "write host:port"),
        ("etcd://" + ",".join("a" for _ in range(17)), "at most 16"),
        ("etcd://user@a", "a user and a password"),
        ("etcd://user:secret@a?password_file=/x", "leave one out"),
        ("etcd://user@a?password_file=/does/not/exist", "cannot read '/does/not/exist'"),
        ("etcd://a?ca=/x", "knows no option ca"),
        ("etcds://a?cert=/dev/null", "both, cert= and key="),
        ("etcds://user:secret@a?verify=no", "knows no option verify"),
    ],
)
def test_what_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        registry.open(url)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("job", ["", "..", "a/b", "a b", "-a", "a" * 65])
def test_jobs_are_words(job: str, tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}", "etcd://host"):
        with pytest.raises(ConfigurationError, match="cannot name a job"):
            registry.open(url, job)


def test_times_are_positive() -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        registry.open("etcd://host", lease_ms=0)


def test_no_password_shows() -> None:
    needs_etcd()
    assert "secret" not in registry.open("etcd://user:secret@host").name
    assert "secret" not in repr(parsed_etcd("etcd://user:secret@host"))


def test_a_missing_extra_is_named() -> None:
    """And whoever uses files loads no gRPC."""
    code = """
import sys
from shoal import registry
from shoal.errors import ConfigurationError
assert "grpc" not in sys.modules
sys.modules["aetcd"] = None  # as if it were not installed
try:
    registry.open("etcd://host:1")
except ConfigurationError as error:
    assert "aetcd" in str(error) and "pip install 'shoal[etcd]'" in str(error), error
else:
    sys.exit("opened")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
