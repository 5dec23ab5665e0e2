"""The registry of a cluster: etcd, whose members agree by Raft on every entry.

    /shoal/<job>/leader        the leader's entry, bound to its lease; its create revision is the epoch
    /shoal/<job>/values/<key>  what leaders wrote, each in a transaction that compares that revision

A new leader can come only once the key is gone, with its lease or by resigning, so epochs grow and
never repeat. Any member that is up and has a majority answers; see cluster for how they take turns.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from aetcd import rpc

from shoal.errors import DeadlineError, RegistryError
from shoal.registry.base import Leader, checked_job, checked_name, encoded, told
from shoal.registry.cluster import Cluster, Member, Metadata, NotFoundError
from shoal.registry.etcd_leadership import EtcdLeadership, revoke
from shoal.registry.etcd_requests import Place, created_at, get, put
from shoal.registry.etcd_watch import Seen, watched
from shoal.registry.url import EtcdAddress


class EtcdRegistry:
    """See base.Registry. lease_ms is rounded up to seconds; etcd may grant more (1.5 times its own election's)."""

    def __init__(self, address: EtcdAddress, job: str, lease_ms: int, answer_ms: int) -> None:
        self.name = f"{address.name} for job {checked_job(job)}"
        self._place = Place(self.name, job)
        self._lease_seconds = math.ceil(lease_ms / 1000)
        self._answer_ms = answer_ms
        self._cluster = Cluster(address)
        self._held: list[EtcdLeadership] = []
        self._tasks: set[asyncio.Task[None]] = set()  # that give leases back

    async def campaign(self, name: str, address: str, deadline_ms: int) -> EtcdLeadership:
        entry = encoded(name, address)
        deadline = asyncio.get_running_loop().time() + deadline_ms / 1000
        leader: Leader | None = None
        leadership: EtcdLeadership | None = None
        try:
            async with (
                asyncio.timeout(None) as limit,
                aclosing(watched(self._cluster, self._place, self._look, deadline_ms)) as changes,
            ):
                async for leader in changes:
                    limit.reschedule(deadline)  # only now: an etcd that never answers is an error with its own reasons
                    if leader is None and (leadership := await self._claim(name, entry, deadline_ms)):
                        break
        except TimeoutError:
            if leadership is None:
                raise DeadlineError(
                    f"{self.name} did not let {name} lead within {deadline_ms / 1000:g} s: {told(leader)}; "
                    "wait longer, end that process, or check that most members of etcd run"
                ) from None
        except asyncio.CancelledError:
            if leadership is not None:  # won in the same moment, and nobody is there to take it
                self._later(leadership.resign())
            raise
        if leadership is None:
            raise RegistryError(f"{self.name} was closed while {name} waited to lead")
        self._held = [held for held in self._held if not held.lost.done()] + [leadership]
        return leadership

    async def leader(self) -> Leader | None:
        return (await self._look(self._answer_ms)).leader

    def changes(self) -> AsyncGenerator[Leader | None, None]:
        return watched(self._cluster, self._place, self._look, self._answer_ms)

    async def read(self, key: str) -> bytes | None:
        answer = await self._get(self._place.value_key(checked_name(key)), self._answer_ms, f"to read {key}")
        return answer.kvs[0].value if answer.kvs else None

    async def close(self) -> None:
        for leadership in self._held:
            await leadership.resign()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._cluster.close()

    # --- helpers ------------------------------------------------------------------------------

    async def _look(self, deadline_ms: float) -> Seen:
        answer = await self._get(self._place.leader_key, deadline_ms, "who leads")
        return Seen(answer.header.revision, self._place.decoded(answer.kvs[0]) if answer.kvs else None)

    async def _get(self, key: bytes, deadline_ms: float, what: str) -> Any:
        """What a majority has under the key."""

        async def attempt(member: Member, metadata: Metadata) -> Any:
            return await member.kv.Range(rpc.RangeRequest(key=key), metadata=metadata)

        return await self._cluster.call(attempt, deadline_ms, what)

    async def _claim(self, name: str, entry: bytes, deadline_ms: int) -> EtcdLeadership | None:
        """Lead, if nobody does; None: somebody was quicker."""
        while True:
            asked, lease = await self._granted(deadline_ms)
            leads = False
            try:
                found = await self._put_if_absent(name, entry, lease.ID, deadline_ms)
                leads = found.lease == lease.ID  # not "it succeeded": that answer may have been lost, and this a repeat
            except NotFoundError:
                continue  # the lease ran out meanwhile
            finally:
                if not leads:  # cancelled or failed, too: nobody shall wait for a lease that nobody holds
                    self._later(revoke(self._cluster, lease.ID))
            if not leads:
                return None
            leader = self._place.decoded(found)
            return EtcdLeadership(self._cluster, self._place, leader, lease.ID, lease.TTL, asked, self._answer_ms)

    async def _granted(self, deadline_ms: int) -> tuple[float, Any]:
        """A new lease, and when it was asked for (loop time)."""
        loop = asyncio.get_running_loop()

        async def attempt(member: Member, metadata: Metadata) -> tuple[float, Any]:
            asked = loop.time()
            request = rpc.LeaseGrantRequest(TTL=self._lease_seconds)
            return asked, await member.lease.LeaseGrant(request, metadata=metadata)

        return await self._cluster.call(attempt, deadline_ms, "for a lease")

    async def _put_if_absent(self, name: str, entry: bytes, lease: int, deadline_ms: int) -> Any:
        """The leader's key as it is after trying to put it (NotFoundError if the lease is gone)."""
        key = self._place.leader_key
        request = rpc.TxnRequest(
            compare=[created_at(key, 0)], success=[put(key, entry, lease), get(key)], failure=[get(key)]
        )

        async def attempt(member: Member, metadata: Metadata) -> Any:
            return (await member.kv.Txn(request, metadata=metadata)).responses[-1]

        answer = await self._cluster.call(attempt, deadline_ms, f"to let {name} lead")
        return answer.response_range.kvs[0]

    def _later(self, giving_back: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(giving_back)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
