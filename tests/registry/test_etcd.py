"""What only etcd can meet: leases that run out, ways that are cut, members that die or hang."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import pytest
import uvloop

from shoal import registry
from shoal.errors import DeadlineError, FencedError
from shoal.registry import Leader

from .home import ADDRESS, SOON_MS, Home, following, until
from .members import Members, free_port, needs_etcd
from .relay import Relay


def test_who_is_cut_off_knows_it_before_another_can_lead(etcd: Members) -> None:
    home = Home(etcd.url)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            relays = [Relay(endpoint) for endpoint in etcd.endpoints]
            for relay in relays:
                stack.push_async_callback(relay.close)
            near = await stack.enter_async_context(
                home.open(f"etcd://{','.join([await relay.start() for relay in relays])}")
            )
            far = await stack.enter_async_context(home.open())
            first = await near.campaign("near", ADDRESS, SOON_MS)
            await first.write("placement", b"of near")
            await asyncio.sleep(1.5 * home.lease_ms / 1000)
            assert not first.lost.done(), "kept by renewals for longer than one lease"
            waiting = asyncio.create_task(far.campaign("far", ADDRESS, SOON_MS))
            for relay in relays:
                relay.cut()
            cut = time.monotonic()
            reason = await first.lost
            lost = time.monotonic()
            assert not waiting.done()
            assert "near could not renew its lease" in reason
            second = await waiting
            led = time.monotonic()
            print(f"cut off: lost after {1000 * (lost - cut):.0f} ms, next leads after {1000 * (led - cut):.0f} ms")
            assert second.epoch > first.epoch
            for relay in relays:
                relay.mend()
            with pytest.raises(FencedError, match="could not renew"):
                await first.write("placement", b"too late")
            assert await far.read("placement") is not None
            assert await far.read("placement") == b"of near"
            assert await near.leader() == Leader("far", ADDRESS, second.epoch), "the way back works"

    asyncio.run(scenario())


def test_etcd_itself_refuses_a_fenced_write(etcd: Members) -> None:
    """The leader's key is taken away by hand, so only the transaction can tell."""
    home = Home(etcd.url, lease_ms=30_000)

    async def scenario() -> None:
        async with home.open() as one, home.open() as two:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            await first.write("placement", b"of one")
            etcd.control(etcd[0], "del", f"/shoal/{home.job}/leader")
            second = await two.campaign("two", ADDRESS, SOON_MS)
            assert not first.lost.done()
            with pytest.raises(FencedError, match=f"two at {ADDRESS} leads under epoch {second.epoch}"):
                await first.write("placement", b"too late")
            assert "two" in first.lost.result()
            assert await two.read("placement") == b"of one"
            etcd.control(etcd[0], "del", f"/shoal/{home.job}/leader")
            with pytest.raises(FencedError, match="is gone"):
                await second.write("placement", b"too late")

    asyncio.run(scenario())


def test_a_leader_whose_key_is_gone_hears_of_it(etcd: Members) -> None:
    home = Home(etcd.url)

    async def scenario() -> None:
        async with home.open() as one:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            etcd.control(etcd[0], "del", f"/shoal/{home.job}/leader")
            async with asyncio.timeout(home.lease_ms / 1000):
                assert "is gone" in await first.lost

    asyncio.run(scenario())


def test_a_leader_leads_on_when_etcds_own_leader_dies(etcd: Members) -> None:
    home = Home(etcd.url, lease_ms=3_000)

    async def scenario() -> None:
        async with home.open() as one, home.open() as two:
            told: list[Leader | None] = []
            follower = asyncio.create_task(following(two.changes(), told))
            first = await one.campaign("one", ADDRESS, SOON_MS)
            await first.write("placement", b"before")
            await until(told, "one")
            victim = etcd.leader()
            victim.send(signal.SIGKILL)
            try:
                killed = time.monotonic()
                await first.write("placement", b"after")
                print(f"from SIGKILL of etcd's leader to the next write: {1000 * (time.monotonic() - killed):.0f} ms")
                assert await two.read("placement") == b"after"
                await asyncio.sleep(killed + 2.9 - time.monotonic())
                assert not first.lost.done(), "the lease outlived the election"
                await first.resign()
                await until(told, None)
                second = await two.campaign("two", ADDRESS, SOON_MS)
                await until(told, "two")
                assert second.epoch > first.epoch
            finally:
                etcd.start(victim)
            follower.cancel()

    asyncio.run(scenario())


def test_a_watch_that_was_away_for_too_long_tells_the_newest(etcd: Members) -> None:
    """etcd has thrown away what happened meanwhile."""
    home = Home(etcd.url)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            relay = Relay(etcd.endpoints[0])
            stack.push_async_callback(relay.close)
            away = await stack.enter_async_context(home.open(f"etcd://{await relay.start()}"))
            one = await stack.enter_async_context(home.open())
            told: list[Leader | None] = []
            follower = asyncio.create_task(following(away.changes(), told))
            await until(told, None)
            relay.drop()
            for name in ("a", "b"):
                leadership = await one.campaign(name, ADDRESS, SOON_MS)
                await leadership.write("placement", name.encode())
                await leadership.resign()
            last = await one.campaign("c", ADDRESS, SOON_MS)
            etcd.control(etcd[0], "compaction", str(last.epoch))
            relay.mend()
            await until(told, "c")
            assert told == [None, Leader("c", ADDRESS, last.epoch)]
            await last.resign()
            await until(told, None)
            follower.cancel()

    asyncio.run(scenario())


def test_a_member_that_hangs_is_left(etcd: Members) -> None:
    """The one that every call and every watch begins with."""
    etcd.leader()

    async def scenario() -> None:
        follower_first = sorted(etcd.endpoints, key=lambda endpoint: endpoint == etcd.leader().endpoint)
        home = Home(f"etcd://{','.join(follower_first)}")
        hung = next(member for member in map(etcd.__getitem__, range(3)) if member.endpoint == follower_first[0])
        async with home.open() as one, home.open() as two:
            told: list[Leader | None] = []
            follower = asyncio.create_task(following(two.changes(), told))
            await until(told, None)
            hung.send(signal.SIGSTOP)
            try:
                first = await one.campaign("one", ADDRESS, SOON_MS)
                await first.write("placement", b"written")
                assert await two.read("placement") == b"written"
                await until(told, "one")
                assert not first.lost.done()
            finally:
                hung.send(signal.SIGCONT)
            follower.cancel()

    asyncio.run(scenario())


def test_where_no_etcd_is_the_error_says_so() -> None:
    needs_etcd()
    url = f"etcd://127.0.0.1:{free_port()},127.0.0.1:{free_port()}"

    async def scenario() -> None:
        nobody = registry.open(url, "job", answer_ms=300)
        for wait, what in (
            (nobody.leader(), "who leads"),
            (nobody.read("placement"), "to read placement"),
            (nobody.campaign("one", ADDRESS, 300), "lead"),
            (anext(nobody.changes()), "who leads"),
        ):
            with pytest.raises(DeadlineError) as caught:
                await wait
            for word in (url.removeprefix("etcd://"), what, "0.3 s", "members"):
                assert word in str(caught.value)
        await nobody.close()

    asyncio.run(scenario())


def test_it_runs_on_the_event_loop_of_shoals_nodes(etcd: Members) -> None:
    home = Home(etcd.url)

    async def scenario() -> None:
        async with home.open() as one:
            first = await one.campaign("one", ADDRESS, SOON_MS)
            await first.write("placement", b"written")
            assert await one.read("placement") == b"written"
            changes = one.changes()
            assert await anext(changes) == Leader("one", ADDRESS, first.epoch)
            await first.resign()
            assert await anext(changes) is None
            await changes.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
