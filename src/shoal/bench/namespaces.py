"""Two network namespaces of this machine joined by a slow, long link, and gone with the benchmark.

    servers 10.111.0.1 -- shoal0 ======== 1 Gbit/s each way, 10 ms each way ======== shoal0 -- workers 10.111.0.2

Made by `ip netns` and shaped by `tc`. Where the kernel has netem, the link is a veth pair whose ends delay
and pace what they send. Where it has not, the ends are tun devices paced by tbf, and a process carries
packets from one to the other and holds each for the delay (relay.py): the same rate and the same round
trip, at the price of a few percent of a core.

Inside these two namespaces only, the defaults of the kernel are changed as the tuning guides for long links
say: net.ipv4.tcp_slow_start_after_idle=0 (a connection keeps its window over the pause between two
steps), and net.ipv4.tcp_rmem and tcp_wmem with a maximum of 16 MiB (the link itself holds 2.5 MB).

Both end with the `with` block, on errors, Ctrl-C and SIGTERM too (fleet.py). A benchmark killed by SIGKILL leaves two
empty namespaces behind, which the next one removes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal.bench.fleet import Fleet
from shoal.bench.sides import Place, Seat
from shoal.errors import JobError

DEVICE = "shoal0"
SERVERS_HOST, WORKERS_HOST = "10.111.0.1", "10.111.0.2"
COMMAND_SECONDS = 20.0
BURST_BYTES = 128 << 10  # more than the largest packet that a device is handed at once
QUEUE_BYTES = 8 << 20  # what waits in front of the link, before packets are dropped
QUEUE_PACKETS = 10_000
SYSCTLS = (
    "net.ipv4.tcp_slow_start_after_idle=0",
    "net.ipv4.tcp_rmem=4096 131072 16777216",
    "net.ipv4.tcp_wmem=4096 65536 16777216",
)
RELAY = "relay"

_OURS = re.compile(r"shoal-(?P<pid>\d+)-(servers|workers)")


@dataclass(frozen=True)
class Shape:
    """What the link is like."""

    bits_per_second: int = 1_000_000_000  # each way
    delay_ms: float = 10.0  # each way


@dataclass(frozen=True)
class Link:
    """The namespaces, while they are there. delayed_by: "netem" or "relay"."""

    servers: str
    workers: str
    delayed_by: str

    @property
    def place(self) -> Place:
        """Servers on one side and workers on the other; those without servers one by one on either."""
        servers, workers = (Seat((_path("ip"), "netns", "exec", name), DEVICE) for name in (self.servers, self.workers))
        return Place(SERVERS_HOST, servers, workers, alone=(servers, workers))


def obstacle() -> str | None:
    """Why such a link cannot be made here, in words; None where it can be."""
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"there is no `{program}` on this machine; install iproute2"
    name = f"shoal-{os.getpid()}-servers"
    try:
        _run("ip", "netns", "add", name)
    except JobError as error:
        return f"this user may not make network namespaces; run it as root ({error})"
    _run("ip", "netns", "del", name)
    return None


@contextmanager
def joined(shape: Shape, fleet: Fleet) -> Iterator[Link]:
    """Two namespaces and the link between them. fleet: entered already; starts the relay, where one is needed.

    Raises JobError when a command fails.
    """
    servers, workers = (f"shoal-{os.getpid()}-{name}" for name in ("servers", "workers"))
    remove_left_behind()
    try:
        for name in (servers, workers):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            for setting in SYSCTLS:
                _run("ip", "netns", "exec", name, "sysctl", "-qw", setting)
        delayed_by = _join(servers, workers, shape, fleet)
        yield Link(servers, workers, delayed_by)
    finally:
        for name in (servers, workers):
            _delete(name)


def remove_left_behind() -> None:
    """Delete namespaces of benchmarks that were killed."""
    for line in _run("ip", "netns", "list").splitlines():
        ours = _OURS.match(line)
        if ours and not Path("/proc", ours["pid"]).exists():
            _delete(ours[0])


def _join(servers: str, workers: str, shape: Shape, fleet: Fleet) -> str:
    end = ("type", "veth", "peer", "name", DEVICE, "netns", workers)
    _run("ip", "link", "add", DEVICE, "netns", servers, *end)
    rate, delay = f"{shape.bits_per_second}bit", f"{shape.delay_ms:g}ms"
    netem = ("netem", "delay", delay, "rate", rate, "limit", str(QUEUE_PACKETS))
    try:
        for name in (servers, workers):
            _run("tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", *netem)
    except JobError:
        _run("ip", "-n", servers, "link", "del", DEVICE)
        fleet.start(RELAY, ("-m", "shoal.bench.relay", DEVICE, str(shape.delay_ms), servers, workers))
        fleet.ready(RELAY)
        tbf = ("tbf", "rate", rate, "burst", str(BURST_BYTES), "limit", str(QUEUE_BYTES))
        for name in (servers, workers):
            _run("tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", *tbf)
        delayed_by = "relay"
    else:
        delayed_by = "netem"
    for name, host in ((servers, SERVERS_HOST), (workers, WORKERS_HOST)):
        _run("ip", "-n", name, "address", "add", f"{host}/24", "dev", DEVICE)
        _run("ip", "-n", name, "link", "set", DEVICE, "txqueuelen", str(QUEUE_PACKETS), "up")
    return delayed_by


def _delete(name: str) -> None:
    try:
        _run("ip", "netns", "del", name)
    except JobError:
        pass  # it was not made, or is gone


def _run(program: str, *arguments: str) -> str:
    """The command's output; JobError with its own words when it fails."""
    command = (_path(program), *arguments)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"`{' '.join(command)}` did not end within {COMMAND_SECONDS:g} s") from None
    if done.returncode:
        raise JobError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _path(program: str) -> str:
    return shutil.which(program) or program
