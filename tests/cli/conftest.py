"""A coordinator that knows how to be visited, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from shoal.config import Limits
from shoal.vocabulary import PolicySpec
from shoal.wire import messages as m
from shoal.wire.framing import Decoder, encode

STATUS = m.Status(
    job="demo",
    phase="running",
    waiting="worker 1 is not ready",
    policy="Sync(quorum=1)",
    epoch=1,
    version=1234,
    members=(
        m.MemberStatus("coordinator", "running", 1235, 1234),
        m.MemberStatus("server/0", "serving", 1235, 1234, 41, 0, 0, 0, 5_600_000, 7_000, 20),
        m.MemberStatus("worker/1", "busy", 1235, 1233, 42, 2, 3, 9876, 120, 2_300_000_000, 1500, {"loss": 1.8812}),
    ),
    data_epoch=2,
    samples_committed=14_808,
    samples=60_000,
    ages=((0, 800), (1, 300), (2, 50), (3, 25), (9, 5)),
    dropped=7,
)


class FakeCoordinator:
    """Accepts visitors of job "demo" with token "secret"; fault: "silent", "closes" or "noise"."""

    def __init__(self) -> None:
        self.fault = ""
        self.visits = 0
        self.visits_max = 1_000  # afterwards it is gone
        self.wanted: list[PolicySpec] = []  # policies that were to be set
        self.set: Callable[[PolicySpec], m.PolicySet] = lambda wanted: m.PolicySet(wanted, since=1235)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        except OSError:
            pass  # closed already
        self._listener.close()

    def _serve(self) -> None:
        while self.visits < self.visits_max:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            with connection:
                self._visit(connection)
        self._listener.close()

    def _visit(self, connection: socket.socket) -> None:
        if self.fault == "noise":
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        def answer(message: m.Message, _: bool) -> None:
            match message:
                case m.Hello(job="demo", token="secret", name=""):
                    connection.sendall(encode(m.Accepted("coordinator")))
                case m.Hello():
                    connection.sendall(encode(m.Refused("Hello", "the token is not this job's")))
                case m.StatusRequest():
                    connection.sendall(encode(STATUS))
                case m.SetPolicy(policy=wanted):
                    self.wanted.append(wanted)
                    connection.sendall(encode(self.set(wanted)))

        decoder = Decoder(Limits(), lambda message, payload_bytes: None, answer)
        while self.fault != "closes" and (data := connection.recv(4096)):
            if self.fault != "silent":
                decoder.feed(data)


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    fake = FakeCoordinator()
    yield fake
    fake.close()
