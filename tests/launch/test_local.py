"""What `launch` promises: the exit status, restarts, clear errors, and that nothing is left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.config import Limits
from shoal.errors import ConfigurationError, JobError, SnapshotError, StartupError
from shoal.launch import crew, local
from shoal.launch.jobs import running
from shoal.storage.snapshot import write_manifest
from shoal.vocabulary import PolicySpec, TableSpec

NODES = str(Path(__file__).with_name("nodes.py"))
HEAD = "import os, signal, subprocess, sys, time; rank = int(os.environ['SHOAL_RANK']); print(f'pid={os.getpid()}')"
Script = Callable[[str], str]


class Lines(list[tuple[str, str]]):
    """Collects what launch tells, and acts on a line when asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.when: dict[str, Callable[[], object]] = {}

    def __call__(self, source: str, text: str) -> None:
        self.append((source, text))
        if text in self.when:
            self.when.pop(text)()

    def of(self, source: str) -> list[str]:
        return [text for name, text in self if name == source]

    def pids(self) -> list[int]:
        return [int(found[1]) for _, text in self if (found := re.search(r"\bpid=(\d+)", text))]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The lines of a job; when the test is over, no process that named itself in them may live."""
    collected = Lines()
    yield collected
    assert collected.pids()
    wait_until(lambda: not any(map(alive, collected.pids())))  # the kernel may still be at it


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "COORDINATOR_PROGRAM", (NODES, "coordinator"))
    monkeypatch.setattr(crew, "SERVER_PROGRAM", (NODES, "server"))


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Writes a script for the workers; it knows `rank`, and tells its pid first."""

    def write(body: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(f"{HEAD}\n{body}")
        return str(path)

    return write


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_runs_a_script_on_every_worker_and_names_the_source_of_each_line(script: Script, lines: Lines) -> None:
    command = (script("print('hello from', rank, sys.argv[1:])"), "--lr", "0.1")
    assert local.launch(command, 2, 2, on_line=lines) == 0
    for rank in range(2):
        assert f"hello from {rank} ['--lr', '0.1']" in lines.of(f"worker {rank}")
    assert lines.of("coordinator")
    assert not [text for _, text in lines if "READY" in text]  # for the launcher alone


def test_a_module_runs_as_python_m_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script, lines: Lines
) -> None:
    script("print('as', __name__)")
    monkeypatch.chdir(tmp_path)
    assert local.launch(("-m", "script"), 1, 1, on_line=lines) == 0
    assert "as __main__" in lines.of("worker 0")


def test_each_process_is_told_what_it_is(script: Script, lines: Lines, tmp_path: Path) -> None:
    names = "SHOAL_WORKERS SHOAL_SERVERS SHOAL_RESUME SHOAL_LEASE_MS OMP_NUM_THREADS"
    body = f"print([os.environ[name] for name in {names.split()!r}])\nassert len(os.environ['SHOAL_TOKEN']) > 30"
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    write_manifest(tmp_path, "job", 1, 1, (), TableSpec((), "sgd", (), PolicySpec("sync")))
    status = local.launch(
        (script(body),), 1, 2, on_line=lines, resume=tmp_path, env=environment, limits=Limits(lease_ms=777)
    )
    assert status == 0
    assert str(["1", "2", str(tmp_path), "777", "3"]) in lines.of("worker 0")


@pytest.mark.parametrize("exit_status", [1, 3, 255])
def test_the_status_of_a_failing_script_comes_back_at_once(script: Script, lines: Lines, exit_status: int) -> None:
    body = f"rank or sys.exit({exit_status})\ntime.sleep(600)"
    started = time.monotonic()
    assert local.launch((script(body),), 2, 1, on_line=lines) == exit_status
    assert time.monotonic() - started < 30
    assert any(
        f"worker 0 (pid {pid}) ended with exit status {exit_status}" in lines.of("shoal")[0] for pid in lines.pids()
    )


def test_a_killed_worker_is_started_again(script: Script, lines: Lines, tmp_path: Path) -> None:
    body = f"""
mark = {str(tmp_path / "mark")!r}
if rank == 1 and not os.path.exists(mark):
    open(mark, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
print("done")
"""
    assert local.launch((script(body),), 2, 1, on_line=lines) == 0
    assert lines.of("worker 1").count("done") == 1
    assert len(lines.of("worker 0")) == 2
    (told,) = lines.of("shoal")
    assert re.fullmatch(r"worker 1 \(pid \d+\) was killed by SIGKILL; started again \(restart 1 of 3\)", told)


def test_restarts_are_counted_over_the_job(script: Script, lines: Lines) -> None:
    body = "os.kill(os.getpid(), signal.SIGSEGV)"
    assert local.launch((script(body),), 1, 1, on_line=lines, max_restarts=2) == 128 + signal.SIGSEGV
    assert len(lines.of("worker 0")) == 3
    assert "no restart is left of 2 (--max-restarts)" in lines.of("shoal")[-1]


def test_what_a_worker_started_ends_with_it(script: Script, lines: Lines) -> None:
    body = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(f"pid={child.pid}")
"""
    assert local.launch((script(body),), 1, 1, on_line=lines) == 0
    assert len(lines.of("worker 0")) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(script: Script, lines: Lines, number: signal.Signals) -> None:
    lines.when["working"] = lambda: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    assert local.launch((script("print('working')\ntime.sleep(600)"),), 1, 1, on_line=lines) == 128 + number
    assert signal.getsignal(number) is before


def test_a_process_that_ignores_sigterm_is_killed(
    script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.3)
    monkeypatch.setenv("FAKE_SERVER", "stubborn")
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('working')\ntime.sleep(600)"
    lines.when["working"] = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert local.launch((script(body),), 1, 1, on_line=lines) == 130


def test_a_dead_server_ends_the_job_and_the_way_on_is_told(
    script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SERVER", "quits")
    with pytest.raises(JobError, match=r"server 0 \(pid \d+\) ended with exit status 5.*--resume PATH"):
        local.launch((script("time.sleep(600)"),), 2, 1, on_line=lines)


def test_the_way_on_is_the_callers(script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SERVER", "quits")
    with pytest.raises(JobError, match="cannot go on without any of its servers and its coordinator: walk home$"):
        local.launch((script("time.sleep(600)"),), 1, 1, on_line=lines, way_on=lambda: "walk home")


def test_a_start_that_fails_tells_nobody_of_snapshots(
    script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_COORDINATOR", "forming")
    monkeypatch.setenv("FAKE_SERVER", "quits")
    with pytest.raises(StartupError, match=r"server 0 .* exit status 5.*had not begun, so nothing is lost$"):
        local.launch((script("time.sleep(600)"),), 2, 1, on_line=lines)


def test_a_server_killed_under_failing_workers_is_the_one_that_is_blamed(script: Script, lines: Lines) -> None:
    def kill_server() -> None:
        os.kill(int(lines.of("server 0")[0].partition("pid=")[2]), signal.SIGKILL)

    lines.when["failing"] = kill_server
    with pytest.raises(JobError, match=r"server 0 \(pid \d+\) was killed by SIGKILL"):
        local.launch((script("time.sleep(0.5)\nprint('failing')\nsys.exit(1)"),), 1, 1, on_line=lines)


def test_nodes_that_are_told_the_job_is_over_leave_the_workers_their_time(
    script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 1.5)
    monkeypatch.setenv("FAKE_COORDINATOR", "leaves")
    monkeypatch.setenv("FAKE_SERVER", "leaves")
    assert local.launch((script("time.sleep(3)\nsys.exit(7)"),), 1, 2, on_line=lines) == 7


@pytest.mark.parametrize("node", ["coordinator", "server"])
def test_a_node_that_leaves_alone_is_missed(
    script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.2)
    monkeypatch.setenv(f"FAKE_{node.upper()}", "leaves")
    with pytest.raises(JobError, match=rf"{node}.* ended with exit status 0.*--resume PATH"):
        local.launch((script("time.sleep(600)"),), 1, 1, on_line=lines)


@pytest.mark.parametrize("node", ["coordinator", "server"])
def test_a_node_that_refuses_is_quoted(
    script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    monkeypatch.setenv(f"FAKE_{node.upper()}", "refuses")
    words = rf"{node}.* ended with exit status 4 before it was ready: this {node} does not like it here"
    with pytest.raises(StartupError, match=words):
        local.launch((script("time.sleep(600)"),), 1, 1, on_line=lines)


@pytest.mark.parametrize("node", ["coordinator", "server"])
def test_a_node_that_is_never_ready_is_named_with_its_last_words(
    script: Script, lines: Lines, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    monkeypatch.setenv(f"FAKE_{node.upper()}", "silent")
    words = rf"not ready after start_ms=1000: {node}.*, its last lines: {node} pid=\d+; .*SHOAL_START_MS"
    with pytest.raises(StartupError, match=words):
        local.launch((script("time.sleep(600)"),), 1, 1, on_line=lines, limits=Limits(start_ms=1000))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"workers": 0}, "at least 1 of its workers, not 0"),
        ({"servers": -1}, "at least 1 of its servers, not -1"),
        ({"max_restarts": -1}, "max_restarts=-1 must be 0 or more"),
        ({"command": ()}, "nothing to run"),
        ({"command": ("-m",)}, "nothing to run"),
        ({"command": ("missing.py",)}, "no script at missing.py"),
        ({"resume": Path("/nowhere")}, "no snapshot at /nowhere"),
        ({"resume": Path(__file__).parent}, "launch is no snapshot"),
        ({"port": 70_000}, "port 70000"),
    ],
)
def test_arguments_that_cannot_work_start_nothing(wrong: dict[str, object], words: str) -> None:
    arguments = {"command": (NODES,), "workers": 1, "servers": 1, **wrong}
    with pytest.raises((ConfigurationError, SnapshotError), match=words):
        local.launch(**arguments)  # type: ignore[arg-type]


def test_a_running_job_can_be_found_until_it_ends(script: Script, lines: Lines) -> None:
    seen = []
    lines.when["working"] = lambda: seen.extend(running())
    assert local.launch((script("print('working')"),), 1, 1, on_line=lines) == 0
    (record,) = seen
    assert record.job == f"script-{os.getpid()}"
    assert record.pid == os.getpid()
    assert record.address.startswith("tcp://127.0.0.1:")
    assert running() == []


def test_an_error_while_printing_leaves_nothing_behind(script: Script, lines: Lines) -> None:
    def break_the_pipe() -> None:
        raise BrokenPipeError

    lines.when["working"] = break_the_pipe
    with pytest.raises(BrokenPipeError):
        local.launch((script("print('working')\ntime.sleep(600)"),), 1, 1, on_line=lines)


def test_it_runs_off_the_main_thread_too(script: Script, lines: Lines) -> None:
    results: list[int] = []
    command = (script("sys.exit(9)"),)
    thread = threading.Thread(target=lambda: results.append(local.launch(command, 1, 1, on_line=lines)))
    thread.start()
    thread.join(60)
    assert results == [9]


def test_nothing_outlives_a_launcher_that_is_killed(script: Script, lines: Lines, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(f"""
from shoal.launch import crew, local
crew.COORDINATOR_PROGRAM, crew.SERVER_PROGRAM = ({NODES!r}, "coordinator"), ({NODES!r}, "server")
local.launch(({script("print('working')" + chr(10) + "time.sleep(600)")!r},), 1, 1)
""")
    launcher = subprocess.Popen([sys.executable, str(driver)], stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            lines("", line)
            if len(lines.pids()) == 3:
                break
        assert [record.pid for record in running()] == [launcher.pid]
    finally:
        launcher.kill()
        launcher.wait()
    wait_until(lambda: running() == [])


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
