"""Leadership in etcd: it lasts as long as its lease, and by the holder's clock a little less.

The holder counts a renewal from the moment it asked for it, and stops MARGIN of the lease early, so
it is through before etcd lets anybody else lead, whatever keeps answers from arriving.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from aetcd import rpc

from shoal.errors import FencedError, ShoalError
from shoal.registry.base import Leader, checked_name, checked_value
from shoal.registry.cluster import AgainError, Cluster, Member, Metadata, NotFoundError
from shoal.registry.etcd_requests import Place, created_at, get, put, unchanged_since

MARGIN = 0.1  # of the lease: for clocks that differ, and for the holder to notice
RENEWALS = 5  # in one lease
RESIGN_MS = 1_000


class EtcdLeadership:
    """See base.Leadership. lease: its identity at etcd, granted for `seconds` when it was asked for (loop time)."""

    def __init__(
        self, cluster: Cluster, place: Place, leader: Leader, lease: int, seconds: float, asked: float, answer_ms: int
    ) -> None:
        self.epoch = leader.epoch
        self.until = asked
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._cluster = cluster
        self._place = place
        self._leader = leader
        self._lease = lease
        self._answer_ms = answer_ms
        self._known: dict[str, int] = {}  # key -> revision of its last write by this leader
        self._writing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._extend(asked, seconds)
        self._keeping = asyncio.get_running_loop().create_task(self._keep(seconds))

    async def write(self, key: str, value: bytes) -> None:
        checked_value(checked_name(key), value)
        path = self._place.value_key(key)

        async def attempt(member: Member, metadata: Metadata) -> None:
            # The revision of the last write is compared, too: an earlier attempt that etcd took late changes nothing.
            while not self.lost.done():
                answer = await member.kv.Txn(
                    rpc.TxnRequest(
                        compare=[
                            created_at(self._place.leader_key, self.epoch),
                            unchanged_since(path, self._known.get(key, 0)),
                        ],
                        success=[put(path, value)],
                        failure=[get(self._place.leader_key), get(path)],
                    ),
                    metadata=metadata,
                )
                if answer.succeeded:
                    self._known[key] = answer.header.revision
                    return
                leaders, found = (part.response_range.kvs for part in answer.responses)
                self._compare(leaders)
                self._known[key] = found[0].mod_revision if found else 0
                if found and found[0].value == value and not self.lost.done():
                    return  # by an attempt whose answer was lost
            raise FencedError(
                f"{key} was not written to {self._place.name}: {self.lost.result()}; campaign again before writing"
            )

        async with self._writing:
            await self._cluster.call(attempt, self._answer_ms, f"to write {key}")

    async def resign(self) -> None:
        self._end(f"{self._leader.name} resigned epoch {self.epoch}")
        await revoke(self._cluster, self._lease)

    # --- keeping the lease --------------------------------------------------------------------

    async def _keep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()

        async def attempt(member: Member, metadata: Metadata) -> tuple[float, int, Any]:
            asked = loop.time()
            stream = member.lease.LeaseKeepAlive(metadata=metadata)
            try:
                await stream.write(rpc.LeaseKeepAliveRequest(ID=self._lease))
                alive = await stream.read()
            finally:
                stream.cancel()
            if alive is grpc.aio.EOF:
                raise AgainError("closed the stream of keep-alives")
            # etcd renews without asking a majority, so a deposed leader of its own may have answered. A read does
            # ask one: in the same term, it proves that whoever renewed still led the members then.
            found = await member.kv.Range(rpc.RangeRequest(key=self._place.leader_key), metadata=metadata)
            if alive.header.raft_term != found.header.raft_term:
                raise AgainError("the members elected a new leader meanwhile")
            return asked, alive.TTL, found.kvs

        while not self.lost.done():
            await asyncio.sleep(seconds / RENEWALS)
            try:
                asked, left, leaders = await self._cluster.call(attempt, 1000 * seconds, "to renew the lease")
                if left <= 0:
                    self._end(f"etcd let the lease of {self._leader.name} run out")
                self._compare(leaders)
            except ShoalError:
                continue  # the timer decides
            if not self.lost.done():
                self._extend(asked, left)

    def _extend(self, asked: float, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        reason = (
            f"{self._leader.name} could not renew its lease of {seconds:g} s in time, so another may lead soon: "
            f"{self._place.name} did not answer"
        )
        self.until = asked + seconds * (1 - MARGIN)  # a loop's clock is time.monotonic(), uvloop's in milliseconds
        self._timer = asyncio.get_running_loop().call_at(self.until, self._end, reason)

    def _compare(self, leaders: Any) -> None:
        """The leader's key as found: is it still this leadership's?"""
        if not leaders:
            self._end(f"the key of epoch {self.epoch} is gone, with its lease or by hand")
        elif leaders[0].create_revision != self.epoch:
            other = self._place.decoded(leaders[0])
            self._end(f"{other.name} at {other.address} leads under epoch {other.epoch}, after {self.epoch}")

    def _end(self, reason: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._timer is not None:
            self._timer.cancel()
        if asyncio.current_task() is not self._keeping:
            self._keeping.cancel()


async def revoke(cluster: Cluster, lease: int) -> None:
    """Give a lease back, and the leader's key with it. Where etcd does not answer in time, it runs out by itself."""

    async def attempt(member: Member, metadata: Metadata) -> None:
        await member.lease.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease), metadata=metadata)

    try:
        await cluster.call(attempt, RESIGN_MS, "to take a lease back")
    except (ShoalError, NotFoundError):
        pass
