"""Coordinators on one registry: one leads, the other stands by, takes over, or ends with the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shoal.config import Job, Limits
from shoal.core import machine as k
from shoal.core.coordinator import FORMING, RECOVERING
from shoal.errors import FencedError, RefusedError
from shoal.registry import open as open_registry
from shoal.runtime.coordinator import CoordinatorNode
from shoal.runtime.node import Node
from shoal.runtime.server import ServerNode
from shoal.vocabulary import COORDINATOR
from shoal.wire.replica import Placed

LIMITS = Limits(tick_ms=20, lease_ms=3_000, connect_ms=3_000)
SOON_SECONDS = 5.0


def job_at(place: Path, token: str = "secret") -> Job:
    return Job("job", token, limits=LIMITS, registry=f"file://{place}")


@asynccontextmanager
async def coordinators(job: Job, count: int) -> AsyncIterator[list[tuple[CoordinatorNode, str]]]:
    """They campaign one after the other."""
    nodes: list[tuple[CoordinatorNode, str]] = []
    try:
        for index in range(count):
            node = CoordinatorNode(job)
            address = await node.listen("tcp://127.0.0.1:0")
            node.campaign(address)
            nodes.append((node, address))
            if index == 0:
                await leads(node)
        yield nodes
    finally:
        for node, _ in nodes:
            await node.close()


async def leads(node: CoordinatorNode) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while node.stands_by:
            await asyncio.sleep(0.01)


def test_who_is_first_begins_the_job_and_who_follows_takes_it_over(tmp_path: Path) -> None:
    async def scene() -> None:
        async with coordinators(job_at(tmp_path / "r"), 2) as [(first, _), (second, address)]:
            assert (first.machine().epoch, first.machine().phase) == (1, FORMING)
            assert second.stands_by
            with pytest.raises(RefusedError, match="stands by: ask the registry who leads"):
                await ServerNode(0, Job("job", "secret", limits=LIMITS)).dial(COORDINATOR, address)
            await first.close()
            await leads(second)
            assert (second.machine().epoch, second.machine().phase) == (2, RECOVERING)

    asyncio.run(scene())


def test_a_job_that_is_over_is_not_taken_over(tmp_path: Path) -> None:
    async def scene() -> None:
        async with coordinators(job_at(tmp_path / "r"), 2) as [(first, _), (second, _)]:
            first.machine().stopped = True
            await first.close()
            assert await asyncio.wait_for(second.halted, SOON_SECONDS) == ""
            assert second.stands_by

    asyncio.run(scene())


def test_another_start_of_the_job_begins_it_anew(tmp_path: Path) -> None:
    async def scene() -> None:
        async with coordinators(job_at(tmp_path / "r"), 1):
            pass
        async with coordinators(job_at(tmp_path / "r", "another"), 1) as [(node, _)]:
            assert (node.machine().epoch, node.machine().phase) == (2, FORMING)

    asyncio.run(scene())


def test_a_coordinator_whose_leadership_is_lost_ends_at_once_and_by_name(tmp_path: Path) -> None:
    async def scene() -> None:
        async with coordinators(job_at(tmp_path / "r"), 1) as [(node, _)]:
            (tmp_path / "r" / "job" / "lock").unlink()
            reason = await asyncio.wait_for(node.halted, SOON_SECONDS)
            assert "the coordinator of epoch 1 leads job job no more: the lock" in reason
            assert node.ends_by is FencedError
            assert node.machine().deposed

    asyncio.run(scene())


def test_the_placement_is_kept_beside_everything_else(tmp_path: Path) -> None:
    async def scene() -> None:
        job = job_at(tmp_path / "r")
        async with coordinators(job, 1) as [(node, _)]:
            for view in (2, 3, 4):
                node.perform(k.Keep(Placed(view, ((0, 1),), (), ((0, "tcp://a:1"), (1, "tcp://b:2")))))
            registry = open_registry(job.registry, job.name)
            async with asyncio.timeout(SOON_SECONDS):
                while b'"view":4,"chains":[[0,1]]' not in (await registry.read("placement") or b""):
                    await asyncio.sleep(0.01)
            await registry.close()

    asyncio.run(scene())


def test_a_node_finds_the_leader_and_then_the_next_one(tmp_path: Path) -> None:
    async def scene() -> None:
        job = job_at(tmp_path / "r")
        async with coordinators(job, 2) as [(first, address), (second, other)]:
            server = ServerNode(0, job)
            try:
                await server.dial_coordinator("tcp://127.0.0.1:9")  # where nobody is: the registry knows better
                assert reached(server) == address
                await first.close()
                await leads(second)
                async with asyncio.timeout(SOON_SECONDS):
                    while reached(server) != other:
                        await asyncio.sleep(0.01)
            finally:
                await server.close()

    asyncio.run(scene())


def reached(node: Node) -> str:
    peer = node.peers.get(COORDINATOR)
    return "" if peer is None else peer.connection.address
