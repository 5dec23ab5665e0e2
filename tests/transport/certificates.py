"""Certificates, good and bad, made by the commands of docs/security.md with the openssl that is installed."""

from __future__ import annotations

import atexit
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from shoal.config import Tls

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
CHANGES = {  # of the page's commands, for what is not as it should be
    "good": {},
    "expired": {"-days 30": "-days -1"},
    "of tomorrow": {
        # `openssl x509` takes no first day before OpenSSL 3.4; `openssl ca` does, and wants books to be kept.
        "openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -copy_extensions copy": (
            r"printf '[ca]\ndefault_ca=d\n[d]\ndatabase=books\nserial=number\nnew_certs_dir=.\ndefault_md=sha256\n"
            r"policy=p\ncopy_extensions=copy\n[p]\ncommonName=supplied\n' > ca.conf && "
            ": > books && echo 01 > number && openssl ca -batch -config ca.conf -in node.csr -cert ca.pem "
            "-keyfile ca.key -startdate 20980101000000Z -enddate 20990101000000Z"
        )
    },
    "of another host": {"DNS:localhost,IP:127.0.0.1": "DNS:elsewhere.test"},
    "of another authority": {},
}
FOREIGN = ("of another authority",)


@cache
def certificate(kind: str = "good") -> Tls:
    """A node's certificate, its key, and the authority that it trusts (the same for all kinds but FOREIGN)."""
    authority = _authority("other" if kind in FOREIGN else "own")
    place = _directory()
    for name in ("ca.pem", "ca.key"):
        shutil.copy(authority / name, place / name)
    _run(_commands()[1:], place, CHANGES[kind])
    return Tls(*(str(place / name) for name in ("node.pem", "node.key", "ca.pem")))


@cache
def _authority(name: str) -> Path:
    place = _directory()
    _run(_commands()[:1], place, {"Shoal authority": f"Shoal authority {name}"})
    return place


def _commands() -> list[str]:
    (block,) = re.findall(r"```bash\n(# Once.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for line in block.splitlines() if line.startswith("openssl ")]


def _run(commands: list[str], place: Path, changes: dict[str, str]) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine to make certificates with")
    for command in commands:
        for old, new in changes.items():
            command = command.replace(old, new)
        subprocess.run(["sh", "-c", command], cwd=place, check=True, capture_output=True, timeout=30)


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="shoal-certificates-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def _directory() -> Path:
    return Path(tempfile.mkdtemp(dir=_root()))
