"""What TLS and the token keep from the network, and the settings by which they are had."""

from __future__ import annotations

import os
import re
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.config import TLS_VARIABLES, Job, Tls
from shoal.errors import ConfigurationError, ShoalError
from shoal.launch.plan import prepared
from shoal.runtime import process, visitor
from shoal.runtime.coordinator import CoordinatorNode
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.loop_thread import LoopThread
from shoal.runtime.server import ServerNode
from shoal.transport import tcp

from ..transport.certificates import PAGE
from .cluster import QUICK, begin, join, promised_table, step, to_bytes, together
from .door import FOREIGN, JOB, OWN, Heard, connected, listening, one_line, secured

# --- what the network sees ------------------------------------------------------------------------


class Eavesdropper:
    """Passes on what two sides say to each other, and keeps it; meddle changes what the dialler says."""

    def __init__(self, address: str, meddle: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.heard = b""
        self._target = address
        self._meddle = meddle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def listen(self) -> None:
        """For one connection, until either side closes."""
        near, _ = self._listener.accept()
        with near, connected(self._target) as far:
            other = {near: far, far: near}
            with selectors.DefaultSelector() as readable, self._listener:
                readable.register(near, selectors.EVENT_READ)
                readable.register(far, selectors.EVENT_READ)
                while ready := readable.select(10):
                    source = near if ready[0][0].fileobj is near else far
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    self.heard += data
                    other[source].sendall(self._meddle(data) if source is near else data)


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_eavesdropper_learns_the_token_only_without_tls(encrypted: bool) -> None:
    tls = secured() if encrypted else None
    with listening(replace(JOB, tls=tls)) as (_, address):
        between = Eavesdropper(address)
        visit = lambda: visitor.status(between.address, "promise", "secret", 5_000, tls)  # noqa: E731
        status, _ = together(visit, between.listen)
        assert status.job == "promise"
        assert (b"secret" in between.heard) is not encrypted
        assert (b"promise" in between.heard) is not encrypted


def test_a_byte_that_is_changed_on_the_way_ends_the_connection() -> None:
    tls, seen = secured(), [0]

    def meddle(data: bytes) -> bytes:
        seen[0] += 1
        return data if seen[0] < 3 else data[:-1] + bytes([data[-1] ^ 1])  # after both flights of the handshake

    with listening(replace(JOB, tls=tls)) as (node, address), one_line(node, "TLS failed .*BAD_RECORD_MAC"):
        between = Eavesdropper(address, meddle)

        def visit() -> None:
            with pytest.raises(ShoalError):
                visitor.status(between.address, "promise", "secret", 3_000, tls)

        together(visit, between.listen)


def test_a_job_over_tls_ends_with_the_same_bits() -> None:
    spec = promised_table()

    def trained(tls: Tls | None) -> bytes:
        embedded = EmbeddedJob(Job("promise", "secret", 2, 2, QUICK, "tcp", tls=tls), scheme="tcp")
        try:

            def work(rank: int) -> bytes:
                worker = join(embedded, rank)
                values = begin(worker, spec)
                while worker.clock <= 4:
                    step(worker, spec)
                worker.close()
                return to_bytes(values)

            first, second = together(lambda: work(0), lambda: work(1))
            assert first == second
            return first
        finally:
            embedded.close()

    assert trained(secured()) == trained(None)


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "exposed"),
    [
        ("tcp://127.0.0.1:0", False),
        ("tcp://127.1.2.3:0", False),
        ("tcp://localhost:0", False),
        ("tcp://[::1]:0", False),
        ("inproc://node", False),
        ("tcp://0.0.0.0:0", True),
        ("tcp://[::]:0", True),
        ("tcp://10.0.0.7:5555", True),
        ("tcp://[fe80::1]:5555", True),
        ("tcp://localhost.invalid:5555", True),
        ("tcp://127.evil.invalid:5555", True),
    ],
)
def test_off_loopback_a_token_is_required_and_without_tls_a_line_warns(
    address: str, exposed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    process.check_exposure(address, JOB)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == exposed
    assert all("reads the token, parameters and gradients, and can change them" in line for line in lines)
    process.check_exposure(address, replace(JOB, tls=secured()))
    assert capfd.readouterr().err == ""
    if exposed:
        with pytest.raises(ConfigurationError, match="set SHOAL_TOKEN on every process"):
            process.check_exposure(address, replace(JOB, token="", tls=secured()))
    else:
        process.check_exposure(address, replace(JOB, token=""))


def test_a_coordinator_off_loopback_says_who_can_read_along() -> None:
    command = [sys.executable, "-m", "shoal.runtime.coordinator", "--listen", "tcp://0.0.0.0:0"]
    with subprocess.Popen(
        command, env=os.environ | {"SHOAL_TOKEN": "secret"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as node:
        assert node.stdout is not None and node.stderr is not None
        assert node.stdout.readline().startswith("SHOAL READY")
        node.terminate()
        (line,) = node.stderr.read().splitlines()
    assert line.startswith("shoal: warning: tcp://0.0.0.0:0 can be reached from other machines, and without TLS")
    del node
    refused = subprocess.run(
        command, env=os.environ | {"SHOAL_TOKEN": ""}, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "set SHOAL_TOKEN on every process" in line


@pytest.mark.parametrize("count", [1, 2])
def test_tls_takes_all_three_files_or_none(count: int, tmp_path: Path) -> None:
    files = dict(list(secured().environment().items())[:count])
    with pytest.raises(ConfigurationError, match="SHOAL_TLS_CERT.* without .*SHOAL_TLS_CA.*all three or none"):
        process.job_from(files)
    script = tmp_path / "script.py"
    script.touch()
    with pytest.raises(ConfigurationError, match="all three or none"):
        prepared([str(script)], 1, 1, environment=files)
    assert process.job_from({}).tls is None


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("SHOAL_TLS_CERT", lambda path: path.unlink(), "--tls-cert .* cannot be read: No such file"),
        ("SHOAL_TLS_KEY", lambda path: path.write_text("nonsense"), "are no certificate and its key in PEM"),
        ("SHOAL_TLS_KEY", lambda path: path.write_text(other_key()), "are no certificate and its key.*KEY_VALUES"),
        ("SHOAL_TLS_KEY", lambda path: path.write_text(with_passphrase(path)), "the key has a passphrase"),
        ("SHOAL_TLS_CA", lambda path: path.write_text(""), "--tls-ca .* holds no certificate in PEM"),
    ],
)
def test_files_that_cannot_be_used_are_named_at_the_start(
    name: str, change: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    files = {}
    for variable, path in secured().environment().items():
        files[variable] = str(tmp_path / Path(path).name)
        Path(files[variable]).write_bytes(Path(path).read_bytes())
    process.job_from(files)
    change(Path(files[name]))
    with pytest.raises(ConfigurationError, match=words):
        process.job_from(files)


@pytest.mark.parametrize(
    ("kind", "words"), [("expired", "certificate has expired"), ("of tomorrow", "certificate is not yet valid")]
)
def test_a_certificate_that_is_not_good_today_is_named_at_the_start(kind: str, words: str) -> None:
    words = rf"^--tls-cert .* is not good today \({words}\).*sign a new one, or set this machine's clock$"
    with pytest.raises(ConfigurationError, match=words):
        process.job_from(secured(kind).environment())


def test_what_else_others_may_say_against_a_certificate_is_left_to_them() -> None:
    for kind in (OWN, "of another host", FOREIGN):  # one authority may be left for another: both are good meanwhile
        process.job_from(secured(kind).environment())


def other_key() -> str:
    return Path(secured(FOREIGN).key).read_text(encoding="utf-8")


def with_passphrase(key: Path) -> str:
    command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:words"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["SHOAL_TOKEN", "SHOAL_JOB"])
@pytest.mark.parametrize("value", ["x" * 5_000, "a\nb", "\udcff"])
def test_a_token_or_name_that_is_no_text_is_refused_at_the_start(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} has .* printable"):
        process.job_from({name: value})


SCRIPT = """
import os, subprocess, sys
import torch, shoal
model = torch.nn.Linear(3, 2)
ps = shoal.connect()
steps = ps.optimizer(model.parameters(), shoal.SGD(lr=0.1))
for _ in range(2):
    model(torch.ones(4, 3)).sum().backward()
    steps.step()
    steps.zero_grad()
if ps.rank == 0:
    hidden = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    seen = subprocess.run(["shoal", "status", "--json"], env=hidden, capture_output=True, text=True)
    print("STATUS", seen.returncode, seen.stdout, seen.stderr)
ps.close()
"""


def test_shoal_run_and_shoal_status_over_tls(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    tls = secured()
    flags = ["--tls-cert", tls.certificate, "--tls-key", tls.key, "--tls-ca", tls.authority]
    command = [sys.executable, "-m", "shoal.cli.main", "run", "--transport", "tcp", *flags, str(script)]
    environment = {name: value for name, value in os.environ.items() if name not in TLS_VARIABLES}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"phase": "running"' in done.stdout, done.stdout
    assert "closed tcp" not in done.stdout + done.stderr, "somebody tried without TLS"


@pytest.mark.parametrize(
    ("command", "arguments"), [(["status"], ["tcp://127.0.0.1:9"]), (["train", "gpt"], []), (["run"], [__file__])]
)
def test_every_command_that_starts_a_job_or_asks_one_takes_the_files_of_tls(
    command: list[str], arguments: list[str]
) -> None:
    given = [*command, "--tls-cert", secured().certificate, *arguments]
    done = CliRunner(env=dict.fromkeys(TLS_VARIABLES)).invoke(app, given)  # it puts back what the command sets
    assert isinstance(done.exception, ConfigurationError), done.output
    assert "without SHOAL_TLS_KEY, SHOAL_TLS_CA" in str(done.exception)


def test_shoal_status_asks_over_tls_by_its_flags() -> None:
    tls = secured()
    flags = ["--tls-cert", tls.certificate, "--tls-key", tls.key, "--tls-ca", tls.authority]
    known = {"SHOAL_JOB": JOB.name, "SHOAL_TOKEN": JOB.token}
    with listening(replace(JOB, tls=tls)) as (_, address):
        done = CliRunner(env=dict.fromkeys(TLS_VARIABLES) | known).invoke(app, ["status", address, "--json", *flags])
    assert done.exit_code == 0, done.output
    assert '"phase": "forming"' in done.output


# --- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "number"), [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")])
def test_a_server_that_listens_everywhere_announces_a_number_that_others_can_dial(host: str, number: str) -> None:
    thread = LoopThread("test-server")

    async def opened() -> tuple[CoordinatorNode, ServerNode, str]:
        coordinator = Heard(JOB)
        server = ServerNode(0, JOB)
        address = await server.open(await coordinator.listen(f"tcp://{number}:0"), f"tcp://{host}:0")
        return coordinator, server, address

    coordinator, server, address = thread.call(opened())
    try:
        assert re.fullmatch(rf"(shm://.*,)?tcp://{re.escape(number)}:\d+", address)
        assert coordinator.machine().membership.servers[0].address == address
    finally:
        for node in (server, coordinator):
            thread.call(node.close())
        thread.stop()


@pytest.mark.parametrize(
    ("listener", "own", "told"),
    [
        ("tcp://0.0.0.0:7", "tcp://10.0.0.3:50123", "tcp://10.0.0.3:7"),
        ("tcp://[::]:7", "tcp://[fd00::3]:50123", "tcp://[fd00::3]:7"),
        ("tcp://10.0.1.3:7", "tcp://10.0.0.3:50123", "tcp://10.0.1.3:7"),
    ],
)
def test_a_number_that_was_chosen_is_announced_as_it_is(listener: str, own: str, told: str) -> None:
    assert tcp.announced(listener, own) == told


def test_a_server_that_nobody_can_dial_by_what_they_know_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"\[::\]:7 takes IPv6 only, and .* as 10\.0\.0\.3: .*SHOAL_LISTEN"):
        tcp.announced("tcp://[::]:7", "tcp://10.0.0.3:50123")


# --- the page -----------------------------------------------------------------------------------------


def test_each_test_that_the_page_names_is_there() -> None:
    root = PAGE.parents[1]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 15
    for path, test in named:
        assert f"def {test}(" in (root / path).read_text(encoding="utf-8"), f"{path}::{test}"
