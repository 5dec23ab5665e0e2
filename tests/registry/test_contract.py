"""The contract of shoal.registry.base, held against both registries."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from shoal.errors import ConfigurationError, DeadlineError, FencedError, RegistryError
from shoal.registry import VALUE_BYTES_MAX, Leader

from .home import ADDRESS, SOON_MS, Home, following, until

Start = Callable[[Home, str], "subprocess.Popen[str]"]


def test_epochs_grow_and_never_repeat(home: Home) -> None:
    async def scenario() -> None:
        epochs = []
        for _ in range(4):
            async with home.open() as registry:
                for name in ("a", "b"):
                    leadership = await registry.campaign(name, ADDRESS, SOON_MS)
                    assert await registry.leader() == Leader(name, ADDRESS, leadership.epoch)
                    epochs.append(leadership.epoch)
                    await leadership.resign()
                    await leadership.resign()  # does no harm
                    assert await registry.leader() is None
        assert epochs == sorted(set(epochs))

    asyncio.run(scenario())


def test_the_second_leads_once_the_first_resigns(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one, home.open() as two:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            waiting = asyncio.create_task(two.campaign("two", ADDRESS, SOON_MS))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            assert not first.lost.done()
            await first.resign()
            assert "resigned" in first.lost.result()
            second = await waiting
            assert second.epoch > first.epoch
            assert await one.leader() == Leader("two", ADDRESS, second.epoch)

    asyncio.run(scenario())


def test_the_next_leads_once_a_leader_is_killed(home: Home, campaigner: Start) -> None:
    child = campaigner(home, "child")
    assert child.stdout is not None
    epoch = int(child.stdout.readline())

    async def scenario() -> None:
        async with home.open() as registry:
            leader = await registry.leader()
            assert leader is not None
            assert (leader.name, leader.epoch) == ("child", epoch)
            told: list[Leader | None] = []
            follower = asyncio.create_task(following(registry.changes(), told))
            waiting = asyncio.create_task(registry.campaign("next", ADDRESS, SOON_MS))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            child.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            leadership = await waiting
            print(f"from SIGKILL of a leader to the next one: {1000 * (time.monotonic() - killed):.0f} ms, {home.url}")
            assert leadership.epoch > epoch
            await until(told, "next")
            assert [leader.name for leader in told if leader is not None] == ["child", "next"]
            follower.cancel()

    asyncio.run(scenario())


def test_who_leads_no_longer_writes_nothing(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one, home.open() as two:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            await first.write("placement", b"of one")
            await first.resign()
            with pytest.raises(FencedError, match="placement was not written.*resigned.*campaign again"):
                await first.write("placement", b"too late")
            assert await two.read("placement") == b"of one"
            second = await two.campaign("two", ADDRESS, SOON_MS)
            await second.write("placement", b"of two")
            with pytest.raises(FencedError):
                await first.write("placement", b"much too late")
            assert await one.read("placement") == b"of two"

    asyncio.run(scenario())


def test_a_watch_sees_the_present_and_every_change(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as registry, home.open() as watching:
            told: list[Leader | None] = []
            follower = asyncio.create_task(following(watching.changes(), told))
            await until(told, None)
            expected: list[Leader | None] = [None]
            for name in ("a", "b", "c"):
                leadership = await registry.campaign(name, ADDRESS, SOON_MS)
                await until(told, name)
                expected += [Leader(name, ADDRESS, leadership.epoch), None]
                late = watching.changes()
                assert await anext(late) == expected[-2]
                await late.aclose()
                await leadership.resign()
                await until(told, None)
            assert told == expected
            await watching.close()
            async with asyncio.timeout(SOON_MS / 1000):
                await follower  # a watch ends with its registry

    asyncio.run(scenario())


def test_values_outlive_leaders_and_registries(home: Home) -> None:
    values = {"placement": b"\x00\xff" * 9, "placement/3": b"", "placement/3/a.b-c_d": bytes(VALUE_BYTES_MAX)}

    async def scenario() -> None:
        async with home.open() as registry:
            leadership = await registry.campaign("one", ADDRESS, SOON_MS)
            await leadership.write("placement", b"first")
            for key, value in values.items():
                await leadership.write(key, value)
            await asyncio.gather(*(leadership.write("many", str(number).encode()) for number in range(10)))
        async with home.open() as registry:
            for key, value in values.items():
                assert await registry.read(key) == value
            assert await registry.read("many") == b"9"
            assert await registry.read("other") is None
            assert await registry.read("leader") is None
            leadership = await registry.campaign("two", ADDRESS, SOON_MS)
            await leadership.write("placement", b"of the next leader")
            assert await registry.read("placement") == b"of the next leader"

    asyncio.run(scenario())


def test_of_many_campaigners_one_leads_at_a_time(home: Home) -> None:
    async def one(name: str, turns: list[str]) -> int:
        async with home.open() as registry:
            leadership = await registry.campaign(name, ADDRESS, SOON_MS)
            turns.append(name)
            count = int(await registry.read("count") or b"0")
            await leadership.write("count", str(count + 1).encode())
            assert turns[-1] == name, "nobody else came in between"
            await leadership.resign()
            return leadership.epoch

    async def scenario() -> None:
        turns: list[str] = []
        epochs = await asyncio.gather(*(one(f"worker/{number}", turns) for number in range(8)))
        assert len(set(epochs)) == 8
        assert [turns[index] for index in range(8)] == [
            f"worker/{number}" for number, _ in sorted(enumerate(epochs), key=lambda pair: pair[1])
        ]
        async with home.open() as registry:
            assert await registry.read("count") == b"8"

    asyncio.run(scenario())


def test_a_campaign_ends_by_its_deadline_and_says_who_leads(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one, home.open() as two:
            leadership = await one.campaign("one", ADDRESS, SOON_MS)
            with pytest.raises(DeadlineError) as caught:
                await two.campaign("two", ADDRESS, 300)
            for word in (two.name, home.job, "two", "0.3 s", "one", ADDRESS, f"epoch {leadership.epoch}"):
                assert word in str(caught.value)

    asyncio.run(scenario())


def test_who_gives_up_a_campaign_is_in_nobodys_way(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one, home.open() as two:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            waiting = asyncio.create_task(two.campaign("two", ADDRESS, SOON_MS))
            await asyncio.sleep(0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            waiting = asyncio.create_task(two.campaign("two", ADDRESS, SOON_MS))
            await asyncio.sleep(0.2)
            await two.close()
            with pytest.raises(RegistryError, match="closed"):
                await waiting
            await first.resign()
            started = time.monotonic()
            await one.campaign("three", ADDRESS, SOON_MS)
            assert time.monotonic() - started < home.lease_ms / 1000

    asyncio.run(scenario())


def test_closing_lets_the_next_one_lead(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as one:
            first = await one.campaign("one", ADDRESS, SOON_MS)
        assert first.lost.done()
        async with home.open() as two:
            started = time.monotonic()
            await two.campaign("two", ADDRESS, SOON_MS)
            assert time.monotonic() - started < home.lease_ms / 1000

    asyncio.run(scenario())


BAD_NAMES = ["", "..", "a/../b", "/a", "a/", "a//b", ".hidden", "a b", "a\0", "ä", "a+b", "a" * 129]


def test_names_and_keys_are_words(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as registry:
            leadership = await registry.campaign("a/b", ADDRESS, SOON_MS)
            for name in BAD_NAMES:
                with pytest.raises(ConfigurationError, match="no name or key"):
                    await registry.campaign(name, ADDRESS, SOON_MS)
                with pytest.raises(ConfigurationError, match="no name or key"):
                    await registry.read(name)
                with pytest.raises(ConfigurationError, match="no name or key"):
                    await leadership.write(name, b"")

    asyncio.run(scenario())


def test_values_and_addresses_are_bounded(home: Home) -> None:
    async def scenario() -> None:
        async with home.open() as registry:
            for address in ("", "a" * 513, "a\nb"):
                with pytest.raises(ConfigurationError, match="no address"):
                    await registry.campaign("one", address, SOON_MS)
            leadership = await registry.campaign("one", ADDRESS, SOON_MS)
            with pytest.raises(ConfigurationError, match="at most 1048576"):
                await leadership.write("placement", bytes(VALUE_BYTES_MAX + 1))

    asyncio.run(scenario())
