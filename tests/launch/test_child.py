"""Lines come whole and in order, however they were written; the end comes last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest

from shoal.launch import leash
from shoal.launch.child import LINE_BYTES_MAX, ChildProcess, Exited, Line, LineSplitter


def lines_of(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"o", b"ne\nt", b"wo"), ["one", "two"]),
        ((b"\n\n",), ["", ""]),
        ((b"dos\r\n",), ["dos"]),
        ((b"dos\r", b"\nnext"), ["dos", "next"]),
        ((b" 10%\r 50%\r100%\n",), ["100%"]),
        ((b"\xff\xfe\n",), ["\ufffd\ufffd"]),
        (("grün".encode()[:3], "grün".encode()[3:] + b"\n"), ["grün"]),
        ((), []),
    ],
)
def test_splits_lines(chunks: tuple[bytes, ...], lines: list[str]) -> None:
    assert lines_of(*chunks) == lines


def test_a_line_without_end_is_cut() -> None:
    lines = lines_of(*[b"x" * 1000] * 200)
    assert "".join(lines) == "x" * 200_000
    assert max(map(len, lines)) <= LINE_BYTES_MAX + 1000


def test_a_progress_bar_that_never_ends_its_line_stays_small() -> None:
    splitter = LineSplitter()
    for step in range(20_000):
        assert splitter.feed(b"\r%5d of 20000" % step) == []
    assert splitter.feed(b"\n") == ["19999 of 20000"]


def run(program: str) -> tuple[list[str], int, ChildProcess]:
    events: SimpleQueue[Line | Exited] = SimpleQueue()
    child = ChildProcess("child", (sys.executable, "-u", "-c", program), os.environ, events.put)
    lines = []
    while True:
        match events.get(timeout=30):
            case Line(_, text):
                lines.append(text)
            case Exited(_, status):
                return lines, status, child


def test_both_streams_arrive_in_order_and_the_end_is_last() -> None:
    program = "import sys\nfor i in range(500): print(i, file=(sys.stdout, sys.stderr)[i % 2])\nsys.exit(6)"
    lines, status, child = run(program)
    assert lines == [str(i) for i in range(500)]
    assert status == 6
    assert list(child.last_lines) == ["495", "496", "497", "498", "499"]


def test_the_signal_that_killed_it_is_told_and_more_signals_do_no_harm() -> None:
    lines, status, child = run("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)")
    assert (lines, status) == ([], -signal.SIGABRT)
    child.signal(signal.SIGKILL)


def test_a_stray_that_holds_the_output_open_is_not_waited_for() -> None:
    program = """
import subprocess, sys
stray = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(stray.pid)
"""
    (pid,), status, _ = run(program)
    os.kill(int(pid), signal.SIGKILL)
    assert status == 0


def test_the_leash_refuses_to_run_for_a_launcher_that_is_gone(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = subprocess.run(
        [sys.executable, leash.__file__, "999999999", "/usr/bin/touch", str(trace)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 1
    assert "the launcher (pid 999999999) is gone" in result.stderr
    assert not trace.exists()
