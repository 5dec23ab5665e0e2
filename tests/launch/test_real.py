"""The launcher with the real coordinator, servers and workers."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.config import Limits
from shoal.errors import JobError, StartupError
from shoal.launch.local import launch
from shoal.wire.messages import Status

TRAINING = """
import os, signal, sys, time
import torch
import shoal

torch.set_num_threads(1)
mark = sys.argv[1]
with shoal.connect() as ps:
    weight = torch.nn.Parameter(torch.zeros(3))
    opt = ps.optimizer([("weight", weight)], shoal.SGD(lr=0.1), sync=shoal.Sync())
    for step in range(int(sys.argv[2])):
        (weight - 1.0).square().sum().backward()
        opt.step()
        opt.zero_grad()
        time.sleep(0.02)
        if ps.rank == 1 and step == 5 and mark and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    print(f"weight {weight[0].item():.3f}")
"""


@pytest.fixture
def training(tmp_path: Path) -> str:
    path = tmp_path / "training.py"
    path.write_text(TRAINING)
    return str(path)


class Watcher:
    """Keeps what launch tells, and acts on the first status for which `act` has an answer."""

    def __init__(self, act: Callable[[Status], bool] = lambda status: False) -> None:
        self.lines: list[tuple[str, str]] = []
        self.statuses: list[Status] = []
        self._act: Callable[[Status], bool] = act
        self._acted = False

    def line(self, source: str, text: str) -> None:
        self.lines.append((source, text))

    def status(self, status: Status) -> None:
        self.statuses.append(status)
        self._acted = self._acted or self._act(status)

    def of(self, source: str) -> list[str]:
        return [text for name, text in self.lines if name == source]


def test_a_script_trains_and_the_status_shows_its_members(training: str) -> None:
    watcher = Watcher()
    assert launch((training, "", "60"), 2, 2, on_line=watcher.line, on_status=watcher.status) == 0, watcher.lines
    assert watcher.of("worker 0") == watcher.of("worker 1") == ["weight 1.000"]
    versions = [status.version for status in watcher.statuses]
    assert versions == sorted(versions)
    busiest = max(watcher.statuses, key=lambda status: len(status.members))
    names = [member.name for member in busiest.members]
    assert names == ["coordinator", "server/0", "server/1", "worker/0", "worker/1"]


def test_a_worker_that_is_killed_in_training_comes_back_and_the_job_finishes(training: str, tmp_path: Path) -> None:
    watcher = Watcher()
    status = launch((training, str(tmp_path / "mark"), "60"), 2, 2, on_line=watcher.line)
    assert status == 0, watcher.lines
    assert [bool(re.search(r"worker 1 .* SIGKILL; started again", text)) for text in watcher.of("shoal")] == [True]
    assert "weight 1.000" in watcher.of("worker 0")


ESTATE = """
import os, signal, sys
import torch
import shoal

size = os.fstat(int(os.environ["SHOAL_ESTATE"])).st_size
print("left", size, flush=True)
with shoal.connect() as ps:
    weight = torch.nn.Parameter(torch.zeros(3))
    opt = ps.optimizer([("weight", weight)], shoal.SGD(lr=0.1), sync=shoal.Sync(), push="2bit")
    for step in range(20):
        (weight - 1.0).square().sum().backward()
        opt.step()
        opt.zero_grad()
        if ps.rank == 1 and step == 5 and not size:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_is_killed_leaves_its_memory_to_the_next_life(tmp_path: Path) -> None:
    """What is in it: tests/promises/test_killed_bits.py."""
    path, watcher = tmp_path / "script.py", Watcher()
    path.write_text(ESTATE)
    assert launch((str(path),), 2, 1, on_line=watcher.line) == 0, watcher.lines
    assert watcher.of("worker 0") == ["left 0"]
    first, second = watcher.of("worker 1")
    assert first == "left 0" != second


@pytest.mark.slow
def test_a_worker_that_hangs_for_good_is_replaced(training: str) -> None:
    def stop(status: Status) -> bool:
        found = [member for member in status.members if member.name == "worker/1" and member.version > 5]
        for member in found:
            os.kill(member.pid, signal.SIGSTOP)
        return bool(found)

    watcher = Watcher(stop)
    limits = Limits(lease_ms=3000, tick_ms=50, heartbeat_ms=500)
    status = launch((training, "", "600"), 2, 1, on_line=watcher.line, on_status=watcher.status, limits=limits)
    assert status == 0, watcher.lines
    said = watcher.of("shoal")
    assert any(re.search(r"worker 1 .* was declared dead and did not end: it is killed", text) for text in said), said
    assert any("started again" in text for text in said)


def test_a_worker_that_ends_before_the_job_begins_is_missed_at_once(training: str) -> None:
    """It ends with 0, so nobody starts it again: the other one would wait in vain."""
    path = Path(training)
    path.write_text(f"import os, sys\nif os.environ['SHOAL_RANK'] == '1':\n    sys.exit(0)\n{TRAINING}")
    words = r"worker 1 \(pid \d+\) ended with exit status 0 before the job began, and worker 0 waits for it in vain"
    started = time.monotonic()
    with pytest.raises(StartupError, match=words):
        launch((training, "", "10"), 2, 1, on_line=Watcher().line)
    assert time.monotonic() - started < 30


def test_a_script_that_trains_nothing_ends_well(training: str) -> None:
    Path(training).write_text("import os, time\ntime.sleep(1.5 * int(os.environ['SHOAL_RANK']))")
    assert launch((training,), 2, 1, on_line=Watcher().line) == 0


def test_a_server_that_is_killed_in_training_ends_the_job_by_name(training: str) -> None:
    def kill_server(status: Status) -> bool:
        pids = {member.name: member.pid for member in status.members}
        if status.version < 3 or "server/1" not in pids:
            return False
        os.kill(pids["server/1"], signal.SIGKILL)
        return True

    watcher = Watcher(kill_server)
    with pytest.raises(JobError, match=r"server 1 \(pid \d+\) was killed by SIGKILL.*--resume PATH"):
        launch((training, "", "100000"), 2, 2, on_line=watcher.line, on_status=watcher.status)


def test_servers_that_are_killed_in_training_are_replaced_and_nothing_shows(training: str) -> None:
    killed: list[str] = []

    def kill_primaries(status: Status) -> bool:
        """One after the other; the next once the lost replica is whole again, and steps were taken meanwhile."""
        states = {member.name: member.state for member in status.members}
        leading = [member for member in status.members if member.state == f"leads shard {len(killed)}"]
        whole = sum(state.startswith("backs") for state in states.values()) == 2
        if status.version < 10 * (1 + len(killed)) or not whole or not leading:
            return False
        killed.append(leading[0].name)
        os.kill(leading[0].pid, signal.SIGKILL)
        return len(killed) == 2

    watcher = Watcher(kill_primaries)
    limits = Limits(lease_ms=8000, heartbeat_ms=200, grace_ms=200)
    status = launch(
        (training, "", "800"), 2, 2, replicas=2, on_line=watcher.line, on_status=watcher.status, limits=limits
    )
    assert status == 0, watcher.lines
    assert killed == ["server/0", "server/1"]
    assert sum("another one is started" in text for text in watcher.of("shoal")) == 2, watcher.lines
    assert any("leads shard 0 now" in text for text in watcher.of("coordinator"))
    assert any("server 4 is a full replica of shard 0" in text for text in watcher.of("coordinator"))
    assert watcher.of("worker 0") == watcher.of("worker 1") == ["weight 1.000"]


def test_a_server_that_hangs_is_killed_and_replaced(training: str) -> None:
    def stop_server(status: Status) -> bool:
        leading = [member for member in status.members if member.state == "leads shard 0"]
        if status.version < 10 or not leading:
            return False
        os.kill(leading[0].pid, signal.SIGSTOP)
        return True

    watcher = Watcher(stop_server)
    limits = Limits(lease_ms=4000, heartbeat_ms=200)
    status = launch(
        (training, "", "300"), 2, 1, replicas=2, on_line=watcher.line, on_status=watcher.status, limits=limits
    )
    assert status == 0, watcher.lines
    assert any("was taken for dead by the coordinator: it is killed" in text for text in watcher.of("shoal"))
    assert watcher.of("worker 0") == watcher.of("worker 1") == ["weight 1.000"]


def hung(training: str, steps: str, restarts: int) -> tuple[int, Watcher]:
    """A job whose coordinator is stopped at version 3. SIGSTOP: its connections stay, and nothing comes over them."""

    def stop_coordinator(status: Status) -> bool:
        if status.version < 3:
            return False
        os.kill(coordinator_of(os.getpid()), signal.SIGSTOP)
        return True

    watcher = Watcher(stop_coordinator)
    found = launch(
        (training, "", steps),
        2,
        2,
        max_restarts=restarts,
        on_line=watcher.line,
        on_status=watcher.status,
        limits=Limits(lease_ms=8000, heartbeat_ms=200),
    )
    return found, watcher


def test_a_coordinator_that_hangs_is_replaced(training: str) -> None:
    status, watcher = hung(training, "80", restarts=1)
    assert status == 0, watcher.lines
    assert any("has not answered for 4 s: it is killed" in text for text in watcher.of("shoal")), watcher.lines
    assert watcher.of("worker 0") == watcher.of("worker 1") == ["weight 1.000"]


def test_a_coordinator_that_hangs_and_may_not_be_started_again_ends_the_job_by_name(training: str) -> None:
    with pytest.raises(JobError, match=r"coordinator \(pid \d+\) was killed by SIGKILL.*--resume PATH"):
        hung(training, "100000", restarts=0)


def coordinator_of(launcher: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    (pid,) = [pid for pid, line in lines.items() if b"shoal.runtime.coordinator" in line]
    return pid


def test_a_port_that_is_taken_is_told_before_anything_else_starts(training: str) -> None:
    watcher = Watcher()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{port} is taken"):
            launch((training, "", "1"), 1, 1, port=port, on_line=watcher.line)
    assert {source for source, _ in watcher.lines} == {"coordinator"}
