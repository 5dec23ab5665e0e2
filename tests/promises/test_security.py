"""Who does not belong is refused: one line where it knocked, one clear error where it came from, and nobody waits."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from shoal.config import PROTOCOL, Job, Limits, Tls
from shoal.errors import RefusedError, ShoalError, StartupError
from shoal.runtime import visitor
from shoal.runtime.loop_thread import LoopThread
from shoal.runtime.server import ServerNode
from shoal.runtime.strangers import LINES_MAX
from shoal.runtime.worker import Worker
from shoal.transport.tls import dialling
from shoal.wire import messages as m
from shoal.wire.framing import HEADER, MAGIC, Decoder, encode

from .door import FOREIGN, JOB, LIMITS, connected, listening, one_line, secured, wait_until

# --- members that do not belong -------------------------------------------------------------------


# Of the listener's job and the dialler's: what differs, the one line, the one error.
MEMBERS: dict[str, tuple[Callable[[], Job], Callable[[], Job], str, str]] = {
    "a wrong token": (
        lambda: JOB,
        lambda: replace(JOB, token="guess"),
        r"^refused worker/0 from tcp://127\.0\.0\.1:\d+: the token does not match that of job 'promise'",
        r"coordinator refused worker/0: the token does not match.*set SHOAL_TOKEN",
    ),
    "a wrong token, with TLS": (
        lambda: replace(JOB, tls=secured()),
        lambda: replace(JOB, token="guess", tls=secured()),
        r"^refused worker/0 from .*: the token does not match",
        r"coordinator refused worker/0: the token does not match",
    ),
    "another job's name": (
        lambda: replace(JOB, tls=secured()),
        lambda: replace(JOB, name="other", tls=secured()),
        r"^refused worker/0 from .*: coordinator belongs to job 'promise', not to 'other'",
        r"coordinator refused worker/0: coordinator belongs to job 'promise', not to 'other': check the address",
    ),
    "a certificate of another authority": (
        lambda: replace(JOB, tls=secured()),
        lambda: replace(JOB, tls=secured(FOREIGN)),
        r"^closed tcp://.*: its certificate is not good \(.*\): the authority in --tls-ca must have signed it",
        r"does not take the certificate of this side \(another authority signed it\)",
    ),
    "an expired certificate": (
        lambda: replace(JOB, tls=secured()),
        lambda: replace(JOB, tls=secured("expired")),
        r"^closed tcp://.*: its certificate is not good \(certificate has expired\): give it a new one",
        r"does not take the certificate of this side \(it has expired",
    ),
    "a listener of another authority": (
        lambda: replace(JOB, tls=secured(FOREIGN)),
        lambda: replace(JOB, tls=secured()),
        r"^closed tcp://.*: it does not take the certificate of this side \(another authority signed it\)",
        r"worker/0 cannot reach coordinator: .*its certificate is not good \(.*\): the authority in --tls-ca",
    ),
    "a listener whose certificate has expired": (
        lambda: replace(JOB, tls=secured("expired")),
        lambda: replace(JOB, tls=secured()),
        r"^closed tcp://.*: it does not take the certificate of this side \(it has expired",
        r"cannot reach coordinator: .*its certificate is not good \(certificate has expired\)",
    ),
    "a listener with another host's certificate": (
        lambda: replace(JOB, tls=secured("of another host")),
        lambda: replace(JOB, tls=secured()),
        r"^closed tcp://.*: it does not take the certificate of this side",
        r"cannot reach coordinator: .*IP address mismatch.*127\.0\.0\.1.*subjectAltName",
    ),
    "no TLS where there must be": (
        lambda: replace(JOB, tls=secured()),
        lambda: JOB,
        r"^closed tcp://.*: it does not speak TLS, and this side takes nothing else",
        r"broke off the handshake of worker/0: .*the peer wants TLS.*give both --tls-cert, --tls-key and --tls-ca",
    ),
    "TLS where there is none": (
        lambda: JOB,
        lambda: replace(JOB, tls=secured()),
        r"^closed tcp://.*: frame starts with .*: the peer speaks TLS and this side does not",
        r"cannot reach coordinator: .*it does not speak TLS, and this side takes nothing else",
    ),
}


@pytest.mark.parametrize("what", MEMBERS)
def test_who_does_not_belong_is_refused_by_one_line_and_told_by_one_error(what: str) -> None:
    there, here, line, error = MEMBERS[what]
    refused = pytest.raises((RefusedError, StartupError), match=error)
    with listening(there()) as (node, address), one_line(node, line), refused:
        Worker(here(), address, 0)


@pytest.mark.parametrize("what", ["a wrong token, with TLS", *list(MEMBERS)[3:]])
def test_a_visitor_is_told_likewise(what: str) -> None:
    there, here, line, _ = MEMBERS[what]
    job = here()
    with listening(there()) as (node, address), one_line(node, line.replace("worker/0", "a visitor")):
        with pytest.raises(ShoalError) as caught:
            visitor.status(address, job.name, job.token, 5_000, job.tls)
        assert address in str(caught.value) or "TLS" in str(caught.value)


# --- strangers --------------------------------------------------------------------------------------


def drained(stranger: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    answer = b""
    try:
        while received := stranger.recv(1 << 16):
            answer += received
    except ConnectionError:
        pass  # closed on bytes that it had not read
    return answer


def says(data: bytes) -> Callable[[str], None]:
    def act(address: str) -> None:
        with connected(address) as stranger:
            stranger.sendall(data)
            drained(stranger)

    return act


def shakes_hands(**facts: object) -> Callable[[str], None]:
    """A client of TLS that is not as it should be."""

    def act(address: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for name, value in facts.items():
            setattr(context, name, value)
        with connected(address) as plain:
            try:
                assert context.wrap_socket(plain).recv(1) == b"", "it got in"
            except (ssl.SSLError, ConnectionError):
                pass  # TLS 1.3 tells a client at its first read, older ones while it shakes hands

    return act


NO_TLS = "it does not speak TLS, and this side takes nothing else"
STRANGERS: dict[str, tuple[Callable[[str], None], str, str]] = {
    "HTTP": (says(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "the peer speaks HTTP", NO_TLS),
    "random bytes": (says(np.random.default_rng(1).bytes(4_000)), "is not a Shoal process", NO_TLS),
    "TLS without a certificate": (shakes_hands(), "the peer speaks TLS", "it showed no certificate"),
    "TLS 1.2": (
        shakes_hands(maximum_version=ssl.TLSVersion.TLSv1_2), "the peer speaks TLS", "does not speak TLS 1.3"
    ),
}  # fmt: skip


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("what", STRANGERS)
def test_another_protocol_is_refused_by_one_line(what: str, encrypted: bool) -> None:
    act, plainly, encryptedly = STRANGERS[what]
    job = replace(JOB, tls=secured() if encrypted else None)
    with listening(job) as (node, address), one_line(node, encryptedly if encrypted else plainly):
        act(address)


@contextmanager
def stranger(address: str, tls: Tls | None) -> Iterator[socket.socket]:
    """A connection by which any bytes can be said; over TLS, by someone with a certificate."""
    with connected(address) as plain:
        if tls is None:
            yield plain
        else:
            with dialling(tls).wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
                yield encrypted


def hello(name: str = "worker/7", token: str = "secret") -> bytes:
    return encode(m.Hello(PROTOCOL, "promise", token, name))


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.pack(MAGIC, PROTOCOL, 0, 17 << 10, 0), "message of 17408 bytes before its handshake.* limit is 16384"),
        (HEADER.pack(MAGIC, PROTOCOL, 0, 100, 1), "payload of 1 bytes before its handshake.* limit is 0"),
    ],
)
def test_before_the_handshake_messages_are_short_and_have_no_payload(
    header: bytes, words: str, encrypted: bool
) -> None:
    tls = secured() if encrypted else None
    with listening(replace(JOB, tls=tls)) as (node, address), one_line(node, words):
        with stranger(address, tls) as peer:
            peer.sendall(header)  # and no more: the answer comes before anything is waited for, or allocated
            answers: list[m.Message] = []
            decoder = Decoder(Limits(), lambda message, size: None, lambda message, done: answers.append(message))
            decoder.feed(drained(peer))
        (refused,) = answers
        assert isinstance(refused, m.Refused) and re.search(words, refused.reason)


def test_after_the_handshake_the_limits_are_those_of_members() -> None:
    with listening(JOB) as (_, address), stranger(address, None) as peer:
        peer.sendall(hello() + encode(m.Report(7, 0, {"x" * 100_000: 1.0})) + encode(m.StatusRequest()))
        answers: list[m.Message] = []
        decoder = Decoder(Limits(), lambda message, size: None, lambda message, done: answers.append(message))
        while not any(isinstance(answer, m.Status) for answer in answers):
            received = peer.recv(1 << 16)
            assert received, answers
            decoder.feed(received)


@pytest.mark.parametrize("name", ["x\nSHOAL BEGUN", "worker/\x1b[2J", "visitor/1", "worker/" + "9" * 5_000])
def test_a_name_that_is_none_is_refused_and_cannot_forge_a_line(name: str) -> None:
    with listening(JOB) as (node, address), one_line(node, "is no name that a peer of coordinator can have"):
        says(hello(name))(address)
    (line,) = node.said
    assert line.isprintable() and len(line) <= 500


def test_nobody_passes_for_the_coordinator_of_a_server() -> None:
    thread = LoopThread("test-server")
    said: list[str] = []

    class Server(ServerNode):
        def log(self, text: str) -> None:
            said.append(text)

    async def opened(address: str) -> tuple[Server, str]:
        server = Server(0, JOB)
        return server, await server.open(address, "tcp://127.0.0.1:0")

    with listening(JOB) as (_, coordinator):
        server, address = thread.call(opened(coordinator))
        says(hello("coordinator"))(address.split(",")[-1])
        wait_until(lambda: said)
        assert "'coordinator' is no name that a peer of server/0 can have" in said[0]
        thread.call(server.close())
    thread.stop()


# --- floods -----------------------------------------------------------------------------------------


FEW = replace(LIMITS, strangers_max=5, streams_max=1)
ROOM = 5 + 1 * (1 + 1) + 1  # and one for each connection that the job itself may need


def is_closed(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("encrypted", [False, True])
def test_of_many_who_say_nothing_the_oldest_are_cut_and_members_get_in(encrypted: bool) -> None:
    job = replace(JOB, limits=FEW, tls=secured() if encrypted else None)
    with listening(job) as (node, address), ExitStack() as stack:
        before = open_files()
        peers = []
        for count in range(1, 60):
            peers.append(stack.enter_context(connected(address)))
            wait_until(lambda count=count: len(node._strangers) == min(count, ROOM))
        wait_until(lambda: sum(map(is_closed, peers)) == len(peers) - ROOM)
        assert not any(map(is_closed, peers[-ROOM:]))
        assert open_files() <= before + len(peers) + ROOM
        assert visitor.status(address, "promise", "secret", 4_000, job.tls).job == "promise"
        assert len(node.said) == LINES_MAX
        assert all("this is the oldest of them; SHOAL_STRANGERS_MAX allows more" in line for line in node.said)
        wait_until(lambda: len(node.said) > LINES_MAX)
        assert re.fullmatch(r"and \d+ more connections were refused within 1000 ms", node.said[-1])


@pytest.mark.parametrize("encrypted", [False, True])
def test_of_many_who_talk_nonsense_and_stay_few_are_kept(encrypted: bool) -> None:
    job = replace(JOB, limits=FEW, tls=secured() if encrypted else None)
    with listening(job) as (node, address), ExitStack() as stack:
        before = open_files()
        for _ in range(60):
            stack.enter_context(connected(address)).sendall(b"nonsense")
        wait_until(lambda: node.said and not len(node._strangers))
        wait_until(lambda: open_files() <= before + 60 + ROOM, 2)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("drip", [b"", MAGIC, b"\x16\x03\x01\x02\x00\x01"])
def test_who_says_no_hello_is_closed_after_connect_ms(drip: bytes, encrypted: bool) -> None:
    limits = replace(LIMITS, connect_ms=300)
    job = replace(JOB, limits=limits, tls=secured() if encrypted else None)
    if drip and encrypted is (drip == MAGIC):
        pytest.skip("refused at once: another protocol")
    with listening(job) as (node, address), one_line(node, "no handshake in connect_ms=300"):
        start = time.monotonic()
        with connected(address) as peer:
            peer.sendall(drip)
            drained(peer)
        assert 0.2 < time.monotonic() - start < 4
