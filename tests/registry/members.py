"""A real etcd of several members on loopback, each a child process that is ended by its process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

START_SECONDS = 20
OPTIONS = ("--heartbeat-interval=50", "--election-timeout=500", "--logger=zap", "--log-level=error")


class Member:
    def __init__(self, name: str, directory: Path, scheme: str = "http") -> None:
        self.name = name
        self.directory = directory
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.client_url = f"{scheme}://{self.endpoint}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, cluster: str, options: tuple[str, ...] = ()) -> None:
        leash = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *leash,
                    "etcd",
                    f"--name={self.name}",
                    f"--data-dir={self.directory / self.name}",
                    f"--listen-client-urls={self.client_url}",
                    f"--advertise-client-urls={self.client_url}",
                    f"--listen-peer-urls={self.peer_url}",
                    f"--initial-advertise-peer-urls={self.peer_url}",
                    f"--initial-cluster={cluster}",
                    *OPTIONS,
                    *options,
                ],
                stdout=log,
                stderr=log,
            )

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    @property
    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text()


class Members:
    """Several of them: `with Members(...) as members`."""

    def __init__(self, directory: Path, count: int = 3, scheme: str = "http", options: tuple[str, ...] = ()) -> None:
        self._members = [Member(f"m{number}", directory, scheme) for number in range(count)]
        self._options = options
        self.scheme = scheme

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self._members]

    @property
    def url(self) -> str:
        return f"etcd://{','.join(self.endpoints)}"

    def __getitem__(self, number: int) -> Member:
        return self._members[number]

    def __enter__(self) -> Members:
        for member in self._members:
            self.start(member)
        return self

    def __exit__(self, *exception: object) -> None:
        for member in self._members:
            member.send(signal.SIGKILL)

    def start(self, member: Member) -> None:
        """Start a member, or start it again."""
        member.start(",".join(f"{member.name}={member.peer_url}" for member in self._members), self._options)

    def leader(self, *options: str) -> Member:
        """The member that leads etcd itself, once there is one."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for member in self._members:
                status = self.control(member, "endpoint", "status", *options).split(", ")
                if len(status) > 4 and status[4] == "true":
                    return member
            time.sleep(0.1)
        pytest.fail("no leader among etcd's members:\n" + "\n".join(member.log for member in self._members))

    def control(self, member: Member, *command: str) -> str:
        """What etcdctl answers at one member; "" where that does not answer."""
        call = ["etcdctl", f"--endpoints={member.client_url}", "--command-timeout=1s", *command]
        environment = {"ETCDCTL_API": "3", "PATH": os.environ["PATH"]}
        return subprocess.run(call, check=False, capture_output=True, text=True, env=environment).stdout.strip()


def needs_etcd() -> None:
    """Skip where etcd is not installed."""
    for command, package in (("etcd", "etcd-server"), ("etcdctl", "etcd-client")):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed: apt-get install {package}")
    if find_spec("aetcd") is None:
        pytest.skip("aetcd is not installed: pip install 'shoal[etcd]'")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
