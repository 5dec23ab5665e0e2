"""The step that a worker has begun and not seen the end of: what waits for it, for all of it or for a part.

Gradients may come from several of autograd's threads; each of them may wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from shoal.core import machine as k
from shoal.core import session as s
from shoal.runtime.worker_node import WorkerNode
from shoal.vocabulary import Dataset, Lease


class Step:
    """One at a time. ask: gives the session a command, and waits for its answer."""

    def __init__(self, node: WorkerNode, ask: Callable[[object], k.Effect]) -> None:
        self._node, self._ask = node, ask
        self._pending: Future[k.Effect] | None = None
        self._ending = threading.RLock()
        self._ahead: tuple[Dataset, Lease] | None = None  # samples for the next one, taken before its end

    @property
    def under_way(self) -> bool:
        """Whether a step was begun, and its end not seen yet."""
        return self._pending is not None

    @property
    def arrived(self) -> bool:
        """Whether finish() would return at once."""
        return self._pending is None or self._pending.done()

    def begin(self) -> Future[k.Effect]:
        """Returns what its answer goes to."""
        self._pending = Future()
        return self._pending

    def await_staged(self) -> None:
        """Wait until the bytes of its gradients are read no more."""
        if self._pending is not None:
            pending, progress = self._pending, self._node.progress
            progress.wait_for(lambda: progress.staged or pending.done())

    def await_blocks(self, blocks: set[int]) -> None:
        """Wait until these blocks of its parameters are in place."""
        if self._pending is None:
            return
        pending, progress = self._pending, self._node.progress
        progress.wait_for(lambda: blocks <= progress.arrived or pending.done())
        if pending.done():
            self.finish()

    def lease_ahead(self, dataset: Dataset, epoch: int) -> Lease | None:
        """Samples for the next step, where they come with word of this one's commit; None: ask for them."""
        if self._pending is None or self._ahead is not None:
            return None
        pending, progress = self._pending, self._node.progress
        progress.wait_for(lambda: progress.lease is not None or pending.done())
        ahead = progress.lease
        if pending.done() or ahead is None or ahead.epoch != epoch:
            return None
        # Its parameters are still on their way: the session hands it out when they are there.
        self._ahead = dataset, ahead
        return ahead

    def finish(self) -> k.Fresh | None:
        """Wait for its end; None: there is none under way."""
        if not self.under_way:
            return None
        with self._ending:
            pending = self._pending
            try:
                fresh = pending.result() if pending is not None else None  # the deadline is the session's
            finally:
                self._pending = None
            if fresh is None:
                return None
            self._node.progress.end()
            assert isinstance(fresh, k.Fresh)
            if self._node.encoder is not None:
                self._node.encoder.end(fresh.committed)
            if self._ahead is not None:
                (dataset, lease), self._ahead = self._ahead, None
                answer = self._ask(s.Take(dataset, lease.epoch))
                assert answer == k.Leased(lease), "the lease that came with word of the commit is the next one"
            return fresh
