"""What only a directory can meet: crashes between any two steps, other users, files that went away."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal import registry
from shoal.errors import ConfigurationError, DeadlineError, FencedError, RegistryError
from shoal.registry import Leader

from .home import ADDRESS, SOON_MS, Home

# Leads as often as it can and writes its epoch each time, for as long as it lives.
RESTLESS = """
import asyncio, sys
from shoal import registry
async def main():
    opened = registry.open(sys.argv[1], "job")
    while True:
        leadership = await opened.campaign("restless", "tcp://127.0.0.1:1", 10_000)
        print(leadership.epoch, flush=True)
        await leadership.write("epoch", b"%d" % leadership.epoch)
        await leadership.resign()
asyncio.run(main())
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(f"file://{tmp_path / 'registry'}")


def place(home: Home) -> Path:
    return Path(home.url.removeprefix("file://"), home.job)


def test_no_crash_at_any_moment_makes_an_epoch_repeat(home: Home) -> None:
    home.job = "job"
    dice = random.Random(4)
    epochs: list[int] = []
    written = 0  # at the least: whoever has led again had written before
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", RESTLESS, home.url], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(dice.uniform(0, 0.05))
        child.kill()
        lines += child.communicate()[0].splitlines()
        told = [int(line) for line in lines if line.strip()]
        epochs += told
        written = max([written, *told[:-1]])

    async def scenario() -> None:
        async with home.open() as one:
            assert await one.leader() is None
            last = int(await one.read("epoch") or b"0")
            assert last in (0, *epochs)
            assert last >= written, "only a write in hand may be missing"
            leadership = await one.campaign("one", ADDRESS, SOON_MS)
            epochs.append(leadership.epoch)
            await leadership.write("epoch", b"whole")
            assert await one.read("epoch") == b"whole"

    asyncio.run(scenario())
    assert epochs == sorted(set(epochs))


def test_what_a_crash_leaves_is_no_obstacle(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one:
            await one.campaign("one", ADDRESS, SOON_MS)
        (place(home) / "leader.new").write_bytes(b"half of an ent")
        (place(home) / "+new").write_bytes(b"99999")
        (place(home) / "values" / "+new").write_bytes(b"half of a value")
        (place(home) / "epoch").write_bytes(b"7\n")  # given out, and then its leader died before it could be seen
        async with home.open() as one:
            assert await one.leader() is None
            leadership = await one.campaign("one", ADDRESS, SOON_MS)
            assert leadership.epoch == 8
            await leadership.write("placement", b"whole")
            assert await one.read("placement") == b"whole"

    asyncio.run(scenario())


def test_an_epoch_file_that_was_removed_or_damaged(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            (place(home) / "epoch").unlink()
            await first.resign()
            second = await one.campaign("one", ADDRESS, SOON_MS)
            assert second.epoch > first.epoch, "as the last leader's entry shows"
            await second.resign()
            (place(home) / "epoch").write_bytes(b"seven")
            with pytest.raises(RegistryError, match=r"epoch holds b'seven'.*greatest epoch"):
                await one.campaign("one", ADDRESS, SOON_MS)
            (place(home) / "epoch").write_bytes(b"7\n")
            assert (await one.campaign("one", ADDRESS, SOON_MS)).epoch == 8, "the failure let go of the lock"

    asyncio.run(scenario())


def test_a_leader_whose_lock_is_taken_away_stops(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one, home.open() as two:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            await first.write("placement", b"of one")
            (place(home) / "lock").unlink()
            second = await two.campaign("two", ADDRESS, SOON_MS)
            with pytest.raises(FencedError, match="placement was not written"):
                await first.write("placement", b"too late")
            async with asyncio.timeout(SOON_MS / 1000):
                assert "removed or replaced" in await first.lost
            assert second.epoch > first.epoch
            await first.resign()
            assert await two.leader() == Leader("two", ADDRESS, second.epoch), "and its resigning takes nothing"
            assert await two.read("placement") == b"of one"

    asyncio.run(scenario())


def test_a_leader_that_hangs_still_leads(home: Home, campaigner: Callable[[Home, str], subprocess.Popen[str]]) -> None:
    child = campaigner(home, "child")
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGSTOP)

    async def scenario() -> None:
        async with home.open() as one:
            with pytest.raises(DeadlineError, match="child at .* leads.*end that process"):
                await one.campaign("one", ADDRESS, 300)
            child.kill()
            await one.campaign("one", ADDRESS, SOON_MS)

    asyncio.run(scenario())


def test_a_file_that_shoal_did_not_write_is_named(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one:
            leadership = await one.campaign("one", ADDRESS, SOON_MS)
            with (place(home) / "leader").open("wb") as file:
                file.write(b"[1]")
            with pytest.raises(RegistryError, match=r"leader was not written by Shoal"):
                await one.leader()
            (place(home) / "values" / "placement").mkdir()
            with pytest.raises(RegistryError, match="cannot keep 'placement'"):
                await leadership.write("placement", b"")
            with pytest.raises(RegistryError, match="cannot keep 'placement'"):
                await one.read("placement")

    asyncio.run(scenario())


def test_only_its_owner_may_write_to_a_registry(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open to all"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"others may write.*chmod go-w"):
        registry.open(f"file://{open_to_all}".replace(" ", "%20"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be a registry"):
        registry.open(f"file://{tmp_path / 'file'}")
    made = tmp_path / "made"
    registry.open(f"file://{made}")
    assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65_534, -1)
    try:
        with pytest.raises(ConfigurationError, match="belongs to user 65534"):
            registry.open(f"file://{tmp_path}")
    finally:
        os.chown(tmp_path, 0, -1)
