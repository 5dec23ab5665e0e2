"""A whole job inside one process: coordinator and servers on one background loop, over inproc.

What `shoal.connect()` gives a script that runs alone: the same machines, log and rules as a
cluster, so the script need not change when it gets one.
"""

from __future__ import annotations

import itertools
import sys
from asyncio import Future, Task
from collections.abc import Sequence
from functools import partial

from shoal.config import Job
from shoal.core.status import status
from shoal.runtime.coordinator import CoordinatorNode
from shoal.runtime.loop_thread import LoopThread
from shoal.runtime.node import Node, milliseconds
from shoal.runtime.server import ServerNode
from shoal.transport import Wrap, unwrapped
from shoal.wire.messages import Status

_numbers = itertools.count()


class Quiet(CoordinatorNode):
    """A coordinator inside the script's own process: its log lines would only be in the way."""

    def log(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        print(f"shoal: warning: {text}", file=sys.stderr, flush=True)


class EmbeddedJob:
    """Coordinator and servers of a job, in this process. Workers join at `address`, on `thread`."""

    def __init__(self, job: Job, resume: str | None = None, wrap: Wrap = unwrapped, scheme: str = "inproc") -> None:
        """scheme "tcp" or "shm" puts the job on loopback ports instead, for workers on other threads or processes."""
        self.job = job
        self.thread = LoopThread("shoal-embedded")
        self._scheme = scheme
        self._number = next(_numbers)
        self._nodes: list[Node] = []
        self._servers: dict[int, ServerNode] = {}
        self._closing: Task[None] | None = None  # kept, or the loop would forget it
        self.address = self.thread.call(self._open(resume, wrap))

    async def _open(self, resume: str | None, wrap: Wrap) -> str:
        coordinator = Quiet(self.job, resume, wrap)
        self._nodes.append(coordinator)
        address = await coordinator.listen(self._listen("coordinator"))
        self._coordinator, self._wrap = coordinator, wrap
        coordinator.halted.add_done_callback(partial(self._halted, coordinator))
        for index in range(self.job.servers * self.job.replicas):
            await self._serve(index, address, resume)
        return address

    async def _serve(self, index: int, coordinator: str, resume: str | None = None) -> None:
        server = ServerNode(index, self.job, resume, self._wrap)
        self._nodes.append(server)
        self._servers[index] = server
        # All are in one process: what one of them shares its fate with is only itself.
        await server.open(coordinator, self._listen(f"server-{index}"), host=server.name)
        # As a process would: what halts closes its connections, and its peers notice.
        server.halted.add_done_callback(partial(self._halted, server))

    def add(self) -> int:
        """Start another server, for a place that is free or will be; returns its number."""
        index = max(self._servers) + 1
        self.thread.call(self._serve(index, self.address))
        return index

    def lose(self, index: int) -> None:
        """A server is gone, as if its process had been killed."""
        self.thread.call(self._servers[index].close())

    def status(self) -> Status:
        """The job as the coordinator sees it."""

        async def look() -> Status:
            return status(self._coordinator.machine(), milliseconds())

        return self.thread.call(look())

    def _halted(self, node: Node, _: Future[str]) -> None:
        self._closing = node.halted.get_loop().create_task(node.close())

    def _listen(self, name: str) -> str:
        return "tcp://127.0.0.1:0" if self._scheme != "inproc" else f"inproc://{self._number}-{name}"

    @property
    def nodes(self) -> Sequence[Node]:
        return self._nodes

    def close(self) -> None:
        """End every node; workers that are still there lose their job."""
        for node in self._nodes:
            self.thread.call(node.close())
        self.thread.stop()
