"""The watch of a job's leader: no change is missed while the members of etcd come and go.

A stream is read from one member. When it breaks, or is silent while a majority knows more, the next
member is asked for everything since the last revision seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc
from aetcd import rpc

from shoal.errors import DeadlineError, RegistryError
from shoal.registry.base import ANSWER_MS, Leader
from shoal.registry.cluster import PAUSE_SECONDS, Cluster, Member, being_cancelled
from shoal.registry.etcd_requests import Place

SILENCE_SECONDS = 2.0  # after so long a majority is asked whether there was really nothing to tell
OPEN_SECONDS = 2.0  # for a member to take the watch
PAUSE_SECONDS_MAX = 0.5

DELETE = 1  # mvccpb.Event.EventType, whose name aetcd does not pass on
NO_MEMBER_WITHOUT_MAJORITY = ("hasleader", "true")  # etcd then ends the stream of a member that lost the others


class Seen(NamedTuple):
    """Who led as of a revision of etcd's."""

    revision: int
    leader: Leader | None


Look = Callable[[float], Awaitable[Seen]]  # by a deadline in ms


async def watched(
    cluster: Cluster, place: Place, look: Look, deadline_ms: float
) -> AsyncGenerator[Leader | None, None]:
    """See base.Registry.changes. look: asks a majority; deadline_ms: for its first answer. Ends with the cluster."""
    seen = await look(deadline_ms)
    yield seen.leader
    pause = PAUSE_SECONDS
    while not cluster.closed():
        member = cluster.member()
        try:
            async with aclosing(_responses(cluster, member, place.leader_key, seen.revision + 1)) as responses:
                async for response in responses:
                    pause = PAUSE_SECONDS
                    if response is None:
                        now = await look(ANSWER_MS)
                        if now.leader != seen.leader or cluster.member() is not member:
                            break  # this member hangs, or lags: another one will tell all since then
                        continue
                    if response.canceled:
                        now = await look(ANSWER_MS)  # RefusedError, if that was why
                        if response.compact_revision:  # what happened since then has been thrown away
                            if now.leader != seen.leader:
                                yield now.leader
                            seen = now
                        break
                    for event in response.events:
                        seen = Seen(event.kv.mod_revision, None if event.type == DELETE else place.decoded(event.kv))
                        yield seen.leader
        except (grpc.aio.AioRpcError, TimeoutError, DeadlineError):
            pass  # a member that died, hangs or lost the others; the next one, however long it takes
        except (RegistryError, asyncio.CancelledError, grpc.aio.UsageError):
            if not cluster.closed() or being_cancelled():
                raise
            return
        cluster.leave(member)
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


async def _responses(cluster: Cluster, member: Member, key: bytes, revision: int) -> AsyncGenerator[Any, None]:
    """What a member tells of the key from the revision on; None whenever it is silent. Ends with its stream."""
    async with asyncio.timeout(OPEN_SECONDS):
        metadata = await cluster.metadata(member)
    stream = member.watch.Watch(metadata=(*metadata, NO_MEMBER_WITHOUT_MAJORITY))
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            await stream.write(
                rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, start_revision=revision))
            )
        while True:
            reading = asyncio.ensure_future(stream.read())
            reading.add_done_callback(lambda read: read.cancelled() or read.exception())  # nobody may be left to ask
            while not (await asyncio.wait({reading}, timeout=SILENCE_SECONDS))[0]:
                yield None  # and read on: a read that is cancelled ends the stream
            if reading.cancelled() or (response := reading.result()) is grpc.aio.EOF:
                return  # cancelled: by the cluster's closing
            yield response
    finally:
        stream.cancel()
