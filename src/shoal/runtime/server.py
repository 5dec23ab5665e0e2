"""A server's process: `python -m shoal.runtime.server` (who it is, it reads from SHOAL_* variables).

The event loop receives gradients straight into the store's staging memory and sends parameters
from its publish buffers; the store's work runs on one thread beside it, one task at a time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal.config import Job
from shoal.core import machine as k
from shoal.core.shard import Open, Shard
from shoal.core.store import Store
from shoal.errors import ConfigurationError, ShoalError
from shoal.placement import cut
from shoal.runtime import process
from shoal.runtime.node import Node
from shoal.storage import snapshot
from shoal.transport import Wrap, unwrapped
from shoal.vocabulary import COORDINATOR, ITEM_BYTES, TableSpec, server_name, worker_name
from shoal.wire import messages as m
from shoal.wire.framing import Buffer

Frame = tuple[tuple[int, ...], list[Buffer]]  # blocks and their bytes


class ServerNode(Node):
    """Drives a Shard and its Store."""

    def __init__(self, index: int, job: Job, resume: Path | None = None, wrap: Wrap = unwrapped) -> None:
        super().__init__(server_name(index), job, wrap)
        self._resume = resume
        version = snapshot.read_manifest(resume).version if resume is not None else 0
        self._shard = Shard(index, job.limits, version=version)
        self._store = Store(snapshot)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"store-{index}")
        self._published: tuple[int, tuple[int, ...], list[Frame]] | None = None

    def machine(self) -> Shard:
        return self._shard

    async def open(self, coordinator: str, listen: str) -> str:
        """Listen, connect to the coordinator and register; returns the server's address."""
        address = await self.listen(listen)
        await self.dial(COORDINATOR, coordinator)
        self.event(Open(address, os.getpid(), self._shard.version))
        while not self._shard.registered and not self.halted.done():
            await asyncio.sleep(self.job.limits.tick_ms / 1000)
        return address

    def admit_payload(self, source: str, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        if not isinstance(message, m.Stage):
            return super().admit_payload(source, message, payload_bytes)
        if not self._shard.admits(message):
            return None
        return self._store.stage(message.contributor, message.blocks)

    def take(self, source: str, message: m.Message, delivered: bool) -> None:
        if isinstance(message, m.Stage) and not self._shard.settled(message.contributor):
            if delivered:
                self._store.delivered(message.contributor, message.blocks)
            elif self._shard.admits(message):
                return  # it was not wanted when it came, and is now: it will come again
        self.event(k.Received(source, message))

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case k.Run(task):
                asyncio.get_running_loop().create_task(self._run(task))
            case k.Publish():
                self._publish(effect)
            case k.Free():
                # Also what was admitted and never completed, which the shard does not know.
                self._store.free([who for who in self._store.contributors() if self._shard.settled(who)])
            case _:
                raise TypeError(f"a server's driver cannot perform {effect!r}")

    async def _run(self, task: k.Task) -> None:
        if isinstance(task, k.Seed | k.Apply):
            self._published = None
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, task)
        except (ShoalError, OSError, MemoryError) as error:
            self.event(k.Done(task, "" if isinstance(task, k.Save) else (), error=f"{type(error).__name__}: {error}"))
            return
        self.event(k.Done(task, result))

    def _work(self, task: k.Task) -> tuple[tuple[int, tuple[float, ...]], ...] | str:
        result = self._store.run(task)
        if isinstance(task, k.CreateTable) and self._resume is not None:
            self._store.load(self._resume)
        return result

    def _publish(self, publish: k.Publish) -> None:
        """Send blocks at the current version, in frames of the usual size."""
        if self._published is None or self._published[:2] != (publish.version, publish.blocks):
            assert self._shard.spec is not None
            groups = _frames(self._shard.spec, publish.blocks, self.job.limits.frame_bytes_target)
            frames: list[Frame] = [(blocks, list(self._store.parameters(blocks))) for blocks in groups]
            self._published = (publish.version, publish.blocks, frames)
        to = worker_name(publish.worker)
        for blocks, buffers in self._published[2]:
            header = m.Parameters(self._shard.index, publish.worker, publish.incarnation, publish.version, blocks)
            self.send(to, header, buffers)

    async def close(self) -> None:
        await super().close()
        self._thread.shutdown(wait=False)


def _frames(spec: TableSpec, blocks: Sequence[int], bytes_target: int) -> list[tuple[int, ...]]:
    """Blocks gathered into groups of about bytes_target."""
    every = cut(spec)
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    held = 0
    for index in blocks:
        group.append(index)
        held += every[index].elements * ITEM_BYTES[spec.tensors[every[index].tensor].dtype]
        if held >= bytes_target:
            groups.append(tuple(group))
            group, held = [], 0
    return [*groups, tuple(group)] if group else groups


def main() -> int:
    async def start() -> Node:
        job = process.job_from()
        index = process.rank_from("SHOAL_SERVER_INDEX")
        coordinator = os.environ.get("SHOAL_COORDINATOR")
        if index < 0 or coordinator is None:
            raise ConfigurationError("a server needs SHOAL_SERVER_INDEX and SHOAL_COORDINATOR; `shoal run` sets both")
        listen = os.environ.get("SHOAL_LISTEN", "tcp://127.0.0.1:0")
        process.check_exposure(listen, job)
        resume = os.environ.get("SHOAL_RESUME")
        node = ServerNode(index, job, Path(resume) if resume else None)
        address = await node.open(coordinator, listen)
        if not node.halted.done():
            print(process.READY, address, flush=True)
        return node

    return process.run(start)


if __name__ == "__main__":
    sys.exit(main())
