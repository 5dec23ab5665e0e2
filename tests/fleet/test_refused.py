"""Who does not belong to a fleet is refused: one line at the member, one error where it came from, nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.config import PROTOCOL, Job
from shoal.errors import ConfigurationError, JobError, RefusedError, ShoalError, StartupError
from shoal.launch.borrowed import borrowing
from shoal.launch.member import serve
from shoal.launch.plan import prepared
from shoal.runtime import visitor
from shoal.runtime.worker import Worker
from shoal.wire import fleet as f
from shoal.wire import messages as m
from shoal.wire.framing import HEADER, MAGIC, encode

from ..promises.door import FOREIGN, JOB, connected, listening, one_line, secured, wait_until
from ..promises.test_security import drained
from .door import TOKEN, Told, environment, lending

Settings = Callable[[], dict[str, str]]


@pytest.fixture(autouse=True)
def expires_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node looks at its own certificate when it starts, and at no other time: here it runs out later."""
    monkeypatch.setattr("shoal.transport.tls._own_error", lambda tls: None)


# Of the member and the launcher: what differs, the one line, the one error.
LAUNCHERS: dict[str, tuple[Settings, Settings, str, str]] = {
    "a wrong token": (
        environment,
        lambda: environment("guess"),
        r"^refused WHO from tcp://127\.0\.0\.1:\d+: the token does not match that of the fleet",
        r"the token does not match.*set SHOAL_FLEET_TOKEN to the fleet's own",
    ),
    "no token": (environment, lambda: environment(""), r"^refused WHO .*: the token does not", "SHOAL_FLEET_TOKEN"),
    "a wrong token, with TLS": (
        lambda: environment(tls=secured()),
        lambda: environment("guess", secured()),
        r"^refused WHO from .*: the token does not match",
        r"the token does not match.*set SHOAL_FLEET_TOKEN",
    ),
    "a certificate of another authority": (
        lambda: environment(tls=secured()),
        lambda: environment(tls=secured(FOREIGN)),
        r"^closed tcp://.*: its certificate is not good \(.*\): the authority in --tls-ca must have signed it",
        r"does not take the certificate of this side \(another authority signed it\)",
    ),
    "an expired certificate": (
        lambda: environment(tls=secured()),
        lambda: environment(tls=secured("expired")),
        r"^closed tcp://.*: its certificate is not good \(certificate has expired\): give it a new one",
        r"does not take the certificate of this side \(it has expired",
    ),
    "a member whose certificate has expired": (
        lambda: environment(tls=secured("expired")),
        lambda: environment(tls=secured()),
        r"^closed tcp://.*: it does not take the certificate of this side \(it has expired",
        r"its certificate is not good \(certificate has expired\)",
    ),
    "no TLS where there must be": (
        lambda: environment(tls=secured()),
        environment,
        r"^closed tcp://.*: it does not speak TLS, and this side takes nothing else",
        r"the peer wants TLS.*give both --tls-cert, --tls-key and --tls-ca",
    ),
    "TLS where there is none": (
        environment,
        lambda: environment(tls=secured()),
        r"^closed tcp://.*: frame starts with .*: the peer speaks TLS and this side does not",
        r"it does not speak TLS, and this side takes nothing else",
    ),
}  # fmt: skip


def borrow_nothing(address: str, settings: dict[str, str]) -> None:
    with borrowing("job", [address], settings):
        pass


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises((RefusedError, StartupError), match=words):
        yield


@pytest.mark.parametrize("what", LAUNCHERS)
def test_a_launcher_that_does_not_belong_is_refused_by_one_line_and_told_by_one_error(what: str) -> None:
    there, here, line, error = LAUNCHERS[what]
    with lending(there()) as (node, address), one_line(node, line.replace("WHO", r"launcher/\S+")), refused(error):
        borrow_nothing(address, here())


@pytest.mark.parametrize("what", LAUNCHERS)
def test_who_asks_for_the_status_is_told_likewise(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here, line, _ = LAUNCHERS[what]
    settings = here()
    for name in settings:
        if "TLS" in name:
            monkeypatch.setenv(name, settings[name])
    with lending(there()) as (node, address), one_line(node, line.replace("WHO", "a visitor")):
        with pytest.raises(ShoalError) as caught:
            visitor.places(address, settings["SHOAL_FLEET_TOKEN"], 5_000)
        assert address in str(caught.value) or "TLS" in str(caught.value)


def test_a_job_s_worker_that_comes_to_a_member_is_told_where_it_is() -> None:
    words = "this is a fleet's member and no node of job 'promise': check the address"
    line = f"^refused worker/0 from .*: {words}"
    with lending(environment()) as (node, address), one_line(node, line), refused(words):
        Worker(JOB, address, 0)


def test_a_launcher_that_comes_to_a_coordinator_is_told_where_it_is() -> None:
    words = r"coordinator belongs to job 'promise', not to '\(fleet\)': check the address"
    with listening(JOB) as (node, address), one_line(node, rf"^refused launcher/\S+ from .*: {words}"), refused(words):
        borrow_nothing(address, environment())


def hello(name: str = "launcher/test-1-a", protocol: int = PROTOCOL, token: str = TOKEN) -> bytes:
    return encode(m.Hello(protocol, f.FLEET, token, name))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "the peer speaks HTTP; this is the port of a Shoal process"),
        (HEADER.pack(MAGIC, PROTOCOL + 1, 0, 9, 0), f"peer speaks protocol {PROTOCOL + 1}, this is {PROTOCOL}"),
        (hello(protocol=PROTOCOL + 1), f"fleet member speaks protocol {PROTOCOL}, .*install the same version"),
        (hello("worker/0"), "'worker/0' is no name that a peer of fleet member can have"),
        (hello("launcher/x\nSHOAL READY"), "is no name that a peer of fleet member can have"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 17 << 10, 0), "message of 17408 bytes before its handshake.* limit is 16384"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 9, 1), "payload of 1 bytes before its handshake"),
        (encode(f.PlacesRequest()), "sent PlacesRequest before its handshake: closed"),
        (encode(f.Lend(1, "job", "server 0", {})), "sent Lend before its handshake: closed"),
    ],
)
def test_another_protocol_and_what_is_out_of_place_are_refused_by_one_line(said: bytes, words: str) -> None:
    with lending(environment()) as (node, address), one_line(node, words), connected(address) as stranger:
        stranger.sendall(said)
        drained(stranger)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (HEADER.pack(MAGIC, PROTOCOL, 0, 2 << 20, 0), b"message of 2097152 bytes, the limit is message_bytes_max="),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 9, 2), b"payload of 2 bytes, the limit is payload_bytes_max=1"),
    ],
)
def test_after_the_handshake_too_there_are_limits(said: bytes, words: bytes) -> None:
    with lending(environment()) as (_, address), connected(address) as launcher:
        launcher.sendall(hello() + said)
        assert words in drained(launcher)


def test_who_only_looks_borrows_nothing() -> None:
    with lending(environment()) as (node, address), connected(address) as looking:
        looking.sendall(hello(name="") + encode(f.Lend(1, "job", "server 0", {})) + encode(f.PlacesRequest()))
        while b"Places" not in (answer := looking.recv(1 << 16)):
            assert answer
        assert b"Lent" not in answer
        assert not node._children


def test_one_job_reaches_neither_the_servers_nor_the_token_of_another() -> None:
    """Each has servers of its own, which know their own job's token; neither knows where the other's are."""
    told = Told()
    with lending(environment()) as (node, address), listening(JOB) as (_, coordinator):
        facts = {"SHOAL_JOB": JOB.name, "SHOAL_TOKEN": JOB.token, "SHOAL_COORDINATOR": coordinator}
        facts["SHOAL_SERVER_INDEX"] = "0"
        with borrowing(JOB.name, [address], environment()) as fleet:
            assert fleet is not None
            server = fleet.start("server 0", {**facts, "MINE": "of_the_launcher"}, told.events.put)
            listens = told.line("SHOAL READY").rpartition(",")[2].removeprefix("SHOAL READY ")
            knows = Path(f"/proc/{server.pid}/environ").read_bytes()
            assert JOB.token.encode() in knows and TOKEN.encode() not in knows and b"of_the_launcher" not in knows
            others: list[tuple[Job, str]] = [
                (replace(JOB, token="of the other job"), "the token does not match that of job 'promise'"),
                (Job("other", "of the other job"), "belongs to job 'promise', not to 'other'"),
            ]
            for other, words in others:
                with pytest.raises((RefusedError, JobError), match=words):
                    visitor.status(listens, other.name, other.token, 5_000)
                told.line(f"^refused a visitor from .*{words}")
            assert not [line for line in told.lines if "refused" in line][2:]
        wait_until(lambda: any(f"(pid {server.pid})" in line and "ended with exit" in line for line in node.said))
    assert all(JOB.token not in line for line in node.said)


# --- settings -------------------------------------------------------------------------------------


def test_off_loopback_a_fleet_needs_a_token_and_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_FLEET_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match="can be reached from other machines: set SHOAL_FLEET_TOKEN"):
        serve("tcp://192.0.2.1:7700", 2)
    with pytest.raises(ConfigurationError, match="every address of this machine.*--listen"):
        serve("tcp://0.0.0.0:7700", 2)
    for places, each in ((0, None), (2, 3), (2, 0)):
        with pytest.raises(ConfigurationError, match="--places-per-job"):
            serve("tcp://127.0.0.1:0", places, each)


def test_the_processes_of_a_job_do_not_learn_the_fleet_s_token() -> None:
    plan = prepared(("-m", "x"), 1, 1, environment={**environment(), "SHOAL_FLEET": "127.0.0.1:7700, tcp://[::1]:7"})
    assert plan.fleet == ("tcp://127.0.0.1:7700", "tcp://[::1]:7")
    assert not {"SHOAL_FLEET", "SHOAL_FLEET_TOKEN"} & plan.environment(environment(), {}).keys()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ("192.0.2.1:7700", "servers on tcp://192.0.2.1:7700 cannot reach a coordinator .* on 127.0.0.1.*--host"),
        ("localhost", "is no address"),
        ("127.0.0.1:port", "is no address"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused_before_anything_starts(members: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        prepared(("-m", "x"), 1, 1, environment={"SHOAL_FLEET": members})
