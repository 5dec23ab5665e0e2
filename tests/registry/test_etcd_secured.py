"""An etcd that asks for certificates and passwords."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal import registry
from shoal.errors import DeadlineError, RefusedError

from .home import ADDRESS, SOON_MS
from .members import Members, needs_etcd

JOB = "mine"


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and what it signed for etcd and for its clients."""
    needs_etcd()
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    place = tmp_path_factory.mktemp("papers")
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    new += ["-nodes", "-days", "2"]
    for authority in ("ca", "other_ca"):
        subprocess.run(
            [*new, "-subj", f"/CN={authority}", "-keyout", f"{authority}.key", "-out", f"{authority}.pem"],
            cwd=place, check=True, capture_output=True,
        )  # fmt: skip
    for name in ("member", "client", "ann"):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        subject = "/CN=ann" if name == "ann" else f"/O={name}"
        subprocess.run(
            [*new, *signed, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=place, check=True, capture_output=True,
        )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def secured(papers: Path) -> Iterator[Members]:
    """One member that takes clients with a certificate and a password; `ann` may use the job `mine`."""
    options = (
        "--client-cert-auth",
        f"--trusted-ca-file={papers / 'ca.pem'}",
        f"--cert-file={papers / 'member.pem'}",
        f"--key-file={papers / 'member.key'}",
    )
    with Members(papers, 1, "https", options) as members:
        paper = ("--cacert", f"{papers / 'ca.pem'}", "--cert", f"{papers / 'client.pem'}")
        paper += ("--key", f"{papers / 'client.key'}")
        members.leader(*paper)
        for command in (
            "user add root:of-root",
            "role add shoal",
            f"role grant-permission --prefix shoal readwrite /shoal/{JOB}/",
            "user add ann:of-ann",
            "user grant-role ann shoal",
            "user grant-role root root",
            "auth enable",
        ):
            assert members.control(members[0], *command.split(), *paper), command
        yield members


def url(secured: Members, papers: Path, user: str = "ann:of-ann@", ca: str = "ca", paper: bool = True) -> str:
    own = f"&cert={papers / 'client.pem'}&key={papers / 'client.key'}" if paper else ""
    return f"etcds://{user}{secured.endpoints[0]}?ca={papers / f'{ca}.pem'}{own}"


def test_with_the_right_papers_all_works(secured: Members, papers: Path) -> None:
    async def scenario() -> None:
        opened = registry.open(url(secured, papers), JOB, lease_ms=1_000)
        changes = opened.changes()
        assert await anext(changes) is None
        leadership = await opened.campaign("one", ADDRESS, SOON_MS)
        await leadership.write("placement", b"written")
        assert await opened.read("placement") == b"written"
        found = await anext(changes)
        assert found is not None
        assert found.epoch == leadership.epoch
        await asyncio.sleep(1.5)
        assert not leadership.lost.done()
        await changes.aclose()
        await opened.close()

    asyncio.run(scenario())


def test_the_common_name_of_a_certificate_is_a_user(secured: Members, papers: Path) -> None:
    async def scenario() -> None:
        paper = f"?ca={papers / 'ca.pem'}&cert={papers / 'ann.pem'}&key={papers / 'ann.key'}"
        for job in (JOB, "other"):
            opened = registry.open(f"etcds://{secured.endpoints[0]}{paper}", job)
            if job == JOB:
                assert await opened.leader() is None
            else:
                with pytest.raises(RefusedError, match="permission denied"):
                    await opened.leader()
            await opened.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("user", "job", "says"),
    [
        ("", JOB, "a client without user.*permission denied"),
        ("ann:wrong@", JOB, "user ann.*authentication failed"),
        ("ann:of-ann@", "other", "user ann.*permission denied"),
    ],
)
def test_who_may_not_is_told_so(secured: Members, papers: Path, user: str, job: str, says: str) -> None:
    async def scenario() -> None:
        opened = registry.open(url(secured, papers, user), job)
        try:
            with pytest.raises(RefusedError, match=says) as caught:
                await opened.leader()
            with pytest.raises(RefusedError, match=says):
                await opened.campaign("one", ADDRESS, SOON_MS)
            assert "wrong" not in str(caught.value)
        finally:
            await opened.close()

    asyncio.run(scenario())


def test_a_wrong_authority_or_no_certificate_is_no_connection(secured: Members, papers: Path) -> None:
    async def scenario() -> None:
        plain = f"etcd://{secured.endpoints[0]}"
        for wrong, says in (
            (url(secured, papers, ca="other_ca"), "CERTIFICATE_VERIFY_FAILED"),
            (url(secured, papers, paper=False), ""),
            (plain, ""),
        ):
            opened = registry.open(wrong, JOB, answer_ms=400)
            with pytest.raises(DeadlineError, match=f"did not answer within 0.4 s .*last: 127.0.0.1:.*{says}"):
                await opened.leader()
            await opened.close()

    asyncio.run(scenario())
