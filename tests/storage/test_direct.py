"""Files past the page cache hold the same bytes as any other, whatever pieces they are written and read in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from shoal.storage.direct import ALIGNED_BYTES, BUFFER_BYTES, Sink, Source

SIZES = [0, 1, 511, ALIGNED_BYTES, ALIGNED_BYTES + 1, BUFFER_BYTES - 1, BUFFER_BYTES, 2 * BUFFER_BYTES + 777]


@pytest.fixture(params=["direct", "no such flag", "no such access"])
def access(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems that refuse it when a file is opened, and those that do when it is used."""
    real_open, real_write, real_read = os.open, os.write, os.preadv
    refused = OSError(errno.EINVAL, "Invalid argument")

    def is_direct(file: int) -> bool:
        import fcntl

        return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)

    def refuse_open(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise refused
        return real_open(path, flags, *rest)

    def refuse_write(file: int, data: memoryview) -> int:
        if is_direct(file):
            raise refused
        return real_write(file, data)

    def refuse_read(file: int, *rest: object) -> int:
        if is_direct(file):
            raise refused
        return real_read(file, *rest)  # type: ignore[arg-type]

    if request.param == "no such flag":
        monkeypatch.setattr(os, "open", refuse_open)
    if request.param == "no such access":
        monkeypatch.setattr(os, "write", refuse_write)
        monkeypatch.setattr(os, "preadv", refuse_read)
    return str(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(size: int, access: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "file", np.random.default_rng(size)
    data = rng.integers(0, 256, size, np.uint8).tobytes()
    with Sink(path) as sink:
        at = 0
        while at < size:
            piece = int(rng.choice([1, 100, 5000, BUFFER_BYTES + 3]))
            assert sink.write(memoryview(data)[at : at + piece]) == len(data[at : at + piece])
            at += piece
        sink.sync()
    assert path.read_bytes() == data
    with Source(path) as source:
        found = bytearray()
        while piece := source.read(int(rng.choice([17, 5000, BUFFER_BYTES]))):
            found += piece
        assert bytes(found) == data and source.read(1) == b""
    with Source(path) as source:
        for start in [0, size // 2, size // 3, max(0, size - 1), size]:
            source.seek(start)
            assert source.readall() == data[start:]
            source.seek(start)
            assert source.read(5) == data[start : start + 5]
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with Sink(tmp_path / "file") as sink:
        sink.write(b"x")
        with pytest.raises(OSError, match="No space left"):
            sink.sync()


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:1000]))
    with Sink(tmp_path / "file") as sink:
        sink.write(bytes(range(256)) * 64)
        sink.sync()
    assert (tmp_path / "file").read_bytes() == bytes(range(256)) * 64
