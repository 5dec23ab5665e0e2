"""What a worker pushes for the clock under way: where gradients lie, and which way each of them goes.

As it is, to the servers; encoded, block by block; or into memory that it shares with them, where it is read: then they
are told at the end of the step, and not at all before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from shoal.placement import blocks_of_tensor
from shoal.runtime.shared import Bytes
from shoal.runtime.worker_node import WorkerNode
from shoal.vocabulary import TableSpec


class Pushes:
    """Of one worker. post: calls a function on the node's loop."""

    def __init__(self, node: WorkerNode, post: Callable[..., None]) -> None:
        self.all_near = False  # every server reads shared memory
        self._node, self._post = node, post
        self._written: list[int] = []  # tensors whose gradients lie in shared memory, since the last step

    @property
    def encoded(self) -> bool:
        """Whether gradients travel otherwise than they are."""
        return self._node.encoder is not None

    def memory(self, tensor: int) -> Bytes | None:
        """Where a gradient is best written; None: anywhere."""
        shared = self._node.shared
        if shared is None or self.encoded or self._node.failure is not None:
            return None
        return shared.gradient(tensor)

    def arena(self) -> Bytes | None:
        """All of that memory: (bytes,) uint8. None: there is none."""
        shared = self._node.shared
        return None if shared is None else np.frombuffer(shared.arena.memory, np.uint8)

    def push(self, spec: TableSpec, tensor: int, gradient: Bytes) -> bool:
        """A gradient is complete. False: it was encoded, and some of it is not finite."""
        encoder, shared, failed = self._node.encoder, self._node.shared, self._node.failure is not None
        near, finite = self.all_near and not failed, True
        if encoder is not None and not failed:
            send = partial(self._post, self._node.push, tensor, gradient)
            session = self._node.session
            finite = encoder.encode(tensor, gradient, session.worker, session.clock, _stays if near else send)
        elif shared is not None and not failed:
            gradient = shared.take_in(tensor, gradient)
        if near:
            self._written.append(tensor)
        elif encoder is None or failed:
            self._post(self._node.push, tensor, gradient, *blocks_of_tensor(spec)[tensor])
        return finite

    def restart(self) -> None:
        """What was pushed for this clock never was."""
        self._written.clear()
        if self._node.encoder is not None:
            self._node.encoder.restart()

    def rescale(self, multiplier: float) -> bool:
        """What the gradients will be multiplied by; True: push all of them again, after a restart()."""
        return self._node.encoder is not None and self._node.encoder.rescale(multiplier)

    def seal(self, used: bool) -> list[int]:
        """All of the clock is pushed; returns the tensors that the servers are to be told of. used: by a commit."""
        encoder, session = self._node.encoder, self._node.session
        if encoder is not None and used:
            encoder.seal(session.incarnation, session.clock)
        elif encoder is not None:
            encoder.restart()
        written, self._written = self._written, []
        return written


def _stays(block: int) -> None:
    """An encoded block that is where it must be."""
