"""A server's process: `python -m shoal.runtime.server` (who it is, it reads from SHOAL_* variables).

The event loop receives gradients straight into the store's staging memory and sends parameters
from its publish buffers; workers on this host share memory with the store, and only words pass. The
store's work runs on one thread beside the loop, one task at a time.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from shoal import arena
from shoal.config import Job
from shoal.core import machine as k
from shoal.core.shard import Open, Shard
from shoal.core.store import Store
from shoal.errors import ConfigurationError, ProtocolError, ShoalError
from shoal.placement import cut
from shoal.runtime import process
from shoal.runtime.node import Node
from shoal.storage import snapshot
from shoal.storage.pace import paced
from shoal.transport import ALTERNATIVE, Connection, Wrap, tcp, unwrapped
from shoal.vocabulary import COORDINATOR, ITEM_BYTES, TableSpec, server_name, worker_name
from shoal.wire import messages as m
from shoal.wire.framing import Buffer
from shoal.wire.gradient import WHOLE

# Blocks, what they come on top of, how many increments each has, and their bytes.
Frame = tuple[tuple[int, ...], int, tuple[int, ...], Sequence[Buffer]]

INLINE_ELEMENTS = 1 << 20  # a shard of up to so many is updated on the event loop itself, in a millisecond or so


class ServerNode(Node):
    """Drives a Shard and its Store."""

    def __init__(self, index: int, job: Job, resume: str | None = None, wrap: Wrap = unwrapped) -> None:
        version = snapshot.read_manifest(resume).version if resume is not None else 0
        super().__init__(server_name(index), job, wrap)
        self._resume = resume
        self._shard = Shard(index, job.limits, version=version)
        self._shares = job.transport == "shm" or (job.transport == "auto" and arena.available())
        self._store = Store(snapshot, job.threads, shared=self._shares)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"store-{index}")
        self._writer = process.beside(f"snapshot-{index}")
        self._closed = False
        self._published: tuple[tuple[int, tuple[int, ...], int, bool], list[Frame]] | None = None  # and of what
        self._lent: dict[str, Lending] = {}  # by backup on this host

    def machine(self) -> Shard:
        return self._shard

    async def open(self, coordinator: str, listen: str, host: str = "") -> str:
        """Listen, connect to the coordinator and register; returns the server's address, as workers are told it.

        Who listens at every number of the machine is reached by the one that the coordinator sees. host: what it
        shares its fate with, for replicas to be put elsewhere; the default is this machine.
        """
        address = await self.listen(listen)
        shared = await self.listen("shm://") if self._shares and not listen.startswith("inproc") else ""
        await self.dial_coordinator(coordinator)
        own = self.peers[COORDINATOR].connection.own_address
        if own and listen.startswith(tcp.SCHEME):
            address = tcp.announced(address, own)
        if shared:
            address = ALTERNATIVE.join((shared, address))
        self.event(Open(address, os.getpid(), self._shard.version, coordinator, host or platform.node()))
        while not self._shard.registration.done and not self.halted.done():
            await asyncio.sleep(self.job.limits.tick_ms / 1000)
        return address

    def admit_payload(self, source: str, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        match message:
            case m.Stage():
                return self._store.stage(message.contributor, message.blocks) if self._shard.admits(message) else None
            case m.Forward():
                return self._store.sums.places(message.blocks) if self._shard.admits_sum(message) else None
            case m.Fill():
                return self._store.take_fill(message, payload_bytes) if self._shard.admits_fill() else None
            case _:
                return super().admit_payload(source, message, payload_bytes)

    def take(self, source: str, message: m.Message, delivered: bool) -> None:
        match message:
            case m.Stage(contributor=who, blocks=blocks) if not self._shard.journal.accounts.settled(who):
                if self._store.attached(who):
                    if self._shard.admits(message):
                        self._store.stage_in_place(who, blocks)
                elif delivered:
                    self._store.delivered(who, blocks)
                elif self._shard.admits(message):
                    return  # it was not wanted when it came, and is now: it will come again
            case m.Attach(worker=worker, incarnation=incarnation):
                descriptor = self.peers[source].connection.take_file()
                if descriptor is None:
                    raise ProtocolError(f"{source} asked to share memory and sent none along")
                self._store.attach(worker, incarnation, descriptor)
            case m.Share(worker=worker, incarnation=incarnation):
                descriptor = self.peers[source].connection.take_file()
                if descriptor is None:
                    raise ProtocolError(f"{source} lends the memory of worker {worker} and sent none along")
                self._store.attach(worker, incarnation, descriptor)
            case m.Forward(in_place=True, contributors=contributors):
                if not all(self._store.attached(item.contributor) for item in contributors):
                    return  # they came before there was a table for them: they will come again
            case m.Forward(server=server):
                descriptor = self.peers[source].connection.take_file()
                if descriptor is not None and self._shard.spec is not None and not self._store.sums.lent(server):
                    self._store.sums.lend(server, descriptor)
                elif descriptor is not None:
                    os.close(descriptor)
                elif not delivered and message.total and self._shard.replica.lacks(message):
                    return  # it could not be taken when it came: it will come again
            case m.Fill() if not delivered:
                return
            case m.Placed(chains=chains):
                self._store.keep_lent(server for chain in chains for server in chain)
        self.event(k.Received(source, message))

    def send(self, to: str, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        if isinstance(message, m.Attached):
            files = (self._store.descriptor,)
        super().send(to, message, payload, files)

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case k.Run(task):
                self._run(task)
            case k.Write(seq, path):
                done = asyncio.get_running_loop().run_in_executor(self._writer, self._write, seq, path)
                done.add_done_callback(lambda future: None if future.cancelled() else self.event(future.result()))
            case k.Hurry():
                self._store.hurry()
            case k.Publish():
                self._publish(effect)
            case k.Forward():
                self._forward(effect)
            case k.Hold(source, _, blocks):
                self._store.sums.hold(source, blocks)
            case k.Give(to, version, updated, blocks):
                fill = m.Fill(self._shard.index, version, updated, blocks)
                self.send(server_name(to), fill, self._store.give(blocks))
            case k.Load(fill, wanted):
                self._store.load_fill(fill, wanted)
            case k.Dial(servers):
                self.keep({server_name(index): self._way(address) for index, address in servers})
            case k.Free():
                # Also what was admitted and never completed, which the shard does not know.
                accounts = self._shard.journal.accounts
                self._store.free([who for who in self._store.contributors() if accounts.settled(who)])
                self._store.detach(accounts.shuts_out)
            case _:
                raise TypeError(f"a server's driver cannot perform {effect!r}")

    def _run(self, task: k.Task) -> None:
        """Let the store work beside the loop; what takes less than waking a thread is done on it."""
        loop = asyncio.get_running_loop()
        if isinstance(task, k.Seed | k.Apply):
            self._published = None  # its memory may be used again
        if isinstance(task, k.Combine):
            self._store.hurry(False)
        if isinstance(task, k.Combine | k.Measure | k.Apply) and self._store.table.elements <= INLINE_ELEMENTS:
            loop.call_soon(lambda: self.event(self._work(task)))
            return
        done = loop.run_in_executor(self._thread, self._work, task)
        done.add_done_callback(lambda future: None if future.cancelled() else self.event(future.result()))

    def _work(self, task: k.Task) -> k.Done:
        try:
            result = self._store.run(task, self._updated(task))
            if isinstance(task, k.CreateTable) and self._resume is not None:
                self._store.load(self._resume)
        except Exception as error:  # noqa: BLE001 - whatever it is, the shard must hear of it: workers wait for the task
            if not isinstance(error, ShoalError | OSError | MemoryError):
                traceback.print_exc()
            return k.Done(task, error=f"{type(error).__name__}: {error}")
        if isinstance(task, k.Seed | k.Apply) and self._store.replicated:
            return k.Done(task, result, checksum=self._store.checksum(task.seq))
        return k.Done(task, result)

    def _updated(self, task: k.Task) -> Callable[[int], None]:
        """What the store tells of each block that it is done with: the shard hears of a frame's worth at a time."""
        if not isinstance(task, k.Apply):
            return lambda _: None
        seq, spec, loop, target = task.seq, self._shard.spec, self.halted.get_loop(), self.job.limits.frame_bytes_target
        assert spec is not None, "commits come after their table"
        lock, ready, ready_bytes = threading.Lock(), list[int](), 0

        def updated(block: int) -> None:
            nonlocal ready_bytes
            with lock:
                ready.append(block)
                ready_bytes += _bytes_of(spec, block)
                if ready_bytes < target:
                    return
                event = k.Updated(seq, tuple(ready))
                ready.clear()
                ready_bytes = 0
            loop.call_soon_threadsafe(self.event, event)

        return updated

    def _forward(self, forward: k.Forward) -> None:
        """Send the sum that is held; to a backup on this host, word of where it lies, or what it takes."""
        name, sums = server_name(forward.to), self._store.sums
        whose = (self._shard.index, forward.epoch, forward.number, forward.contributors)
        if forward.in_place:
            self._lend(name, forward)
            self.send(name, m.Forward(*whose, 0, (), in_place=True))
            return
        blocks = tuple(sorted(sums.held.delivered))
        facts = (*whose, len(blocks))
        peer = self.peers.get(name)
        if peer is not None and peer.connection.shares_memory and sums.descriptor is not None:
            self.send(name, m.Forward(*facts, blocks), files=(sums.descriptor,))
            return
        assert self._shard.spec is not None
        for some in _frames(self._shard.spec, blocks, self.job.limits.frame_bytes_target) or [()]:
            self.send(name, m.Forward(*facts, some), sums.parts(some))

    def _lend(self, name: str, forward: k.Forward) -> None:
        """Have a backup on this host read these contributions where they lie. What is lent stays lent; if it is asked
        for again, something was lost on the way."""
        peer, key = self.peers.get(name), (forward.epoch, forward.number)
        if peer is None or not peer.connection.shares_memory:
            return
        lent = self._lent.get(name)
        if lent is None or lent.connection is not peer.connection or lent.key == key:
            lent = self._lent[name] = Lending(peer.connection)
        lent.key = key
        for who in (item.contributor for item in forward.contributors):
            if (who.worker, who.incarnation) not in lent.workers and self._store.attached(who):
                lent.workers.add((who.worker, who.incarnation))
                word = m.Share(self._shard.index, who.worker, who.incarnation)
                self.send(name, word, files=(self._store.arena_of(who),))

    def _way(self, address: str) -> str:
        return address if self._shares else address.rsplit(ALTERNATIVE, maxsplit=1)[-1]

    def unreachable(self, name: str, error: ShoalError) -> None:
        """A backup that cannot be reached is the coordinator's to judge; without the coordinator all is over."""
        if name == COORDINATOR:
            super().unreachable(name, error)

    def _write(self, seq: int, path: str) -> k.Written:
        try:
            with paced(lambda: self._store.table.generation):
                return k.Written(seq, self._store.write(seq, path))
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker that asked for the snapshot waits
            if not isinstance(error, ShoalError | OSError | MemoryError):
                traceback.print_exc()
            return k.Written(seq, "", f"{type(error).__name__}: {error}")

    def _publish(self, publish: k.Publish) -> None:
        """Send blocks at the current version, in frames of the usual size; on this host, word of where they lie."""
        still = publish.still
        if self._shard.readers.shares(publish.worker, publish.incarnation):
            who = (self._shard.index, publish.worker, publish.incarnation, publish.version)
            self.send(worker_name(publish.worker), m.Parameters(*who, publish.blocks, self._store.stamp, still=still))
            return
        key = (publish.version, publish.blocks, publish.base, still)
        if self._published is None or self._published[0] != key:
            self._published = (key, self._frames(*key))
        who = (self._shard.index, publish.worker, publish.incarnation, publish.version)
        for blocks, base, increments, buffers in self._published[1]:
            self.send(worker_name(publish.worker), m.Parameters(*who, blocks, 0, base, increments, still), buffers)

    def _frames(self, version: int, blocks: tuple[int, ...], base: int, still: bool) -> list[Frame]:
        """Blocks at this version, which is the current one, or what has changed in them."""
        assert self._shard.spec is not None
        frames: list[Frame] = []
        for some in _frames(self._shard.spec, blocks, self.job.limits.frame_bytes_target):
            increments, buffers = (
                self._store.changes(some, base, still) if base else ((), self._store.parameters(some, still))
            )
            plain = all(count == WHOLE for count in increments)
            frames.append((some, 0, (), buffers) if plain else (some, base, increments, buffers))
        return frames

    async def close(self) -> None:
        await super().close()
        if not self._closed:
            self._closed = True
            self._thread.submit(self._store.close)
        self._thread.shutdown(wait=False)
        self._writer.shutdown(wait=False)


@dataclass
class Lending:
    """Whose gradients a backup can read by what went over this connection. key: of the last sum that takes them."""

    connection: Connection
    workers: set[tuple[int, int]] = field(default_factory=set)  # and incarnation
    key: tuple[int, int] = (0, 0)


def _frames(spec: TableSpec, blocks: Sequence[int], bytes_target: int) -> list[tuple[int, ...]]:
    """Blocks gathered into groups of about bytes_target."""
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    held = 0
    for index in blocks:
        group.append(index)
        held += _bytes_of(spec, index)
        if held >= bytes_target:
            groups.append(tuple(group))
            group, held = [], 0
    return [*groups, tuple(group)] if group else groups


def _bytes_of(spec: TableSpec, block: int) -> int:
    """How many bytes its parameters are."""
    item = cut(spec)[block]
    return item.elements * ITEM_BYTES[spec.tensors[item.tensor].dtype]


def main() -> int:
    async def start() -> Node:
        job = process.job_from()
        index = process.rank_from("SHOAL_SERVER_INDEX")
        coordinator = os.environ.get("SHOAL_COORDINATOR")
        if index < 0 or coordinator is None:
            raise ConfigurationError("a server needs SHOAL_SERVER_INDEX and SHOAL_COORDINATOR; `shoal run` sets both")
        listen = os.environ.get("SHOAL_LISTEN", "tcp://127.0.0.1:0")
        process.check_exposure(listen, job)
        node = ServerNode(index, job, os.environ.get("SHOAL_RESUME") or None)
        address = await node.open(coordinator, listen)
        if not node.halted.done():
            print(process.READY, address, flush=True)
        return node

    return process.run(start)


if __name__ == "__main__":
    sys.exit(main())
