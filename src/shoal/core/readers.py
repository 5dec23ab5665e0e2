"""Readers: the workers that a server gives parameters to, and those of them that read them where they lie.

What it promises: who copies parameters out of shared memory has time to do so before they change, but not for ever;
and what a worker was given last is known, so that it can be sent what has changed since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Copy:
    """A worker that copies the parameters of this version out of shared memory."""

    version: int
    since: int | None = None  # when a tick first saw it


@dataclass
class Readers:
    """By worker."""

    near: dict[int, int] = field(default_factory=dict)  # the incarnation that shares memory with this server
    copying: dict[int, Copy] = field(default_factory=dict)  # near ones that may still be at it
    given: dict[int, tuple[int, int]] = field(default_factory=dict)  # incarnation, and the version that it got last

    def attach(self, worker: int, incarnation: int) -> None:
        """It is on this host: it reads parameters where they lie, and has its gradients read where they lie."""
        self.near[worker] = max(incarnation, self.near.get(worker, -1))

    def shares(self, worker: int, incarnation: int) -> bool:
        """Whether this incarnation shares memory with the server."""
        return self.near.get(worker) == incarnation

    def begin(self, worker: int, incarnation: int, version: int) -> None:
        """It is told that parameters of this version lie there, and that they will change."""
        if self.shares(worker, incarnation):
            self.copying[worker] = Copy(version)

    def copied(self, worker: int, incarnation: int, version: int) -> bool:
        """It has copied that version; returns whether it is done with that."""
        copy = self.copying.get(worker)
        over = copy is not None and self.shares(worker, incarnation) and version >= copy.version
        if over:
            del self.copying[worker]
        return over

    def late(self, now: int, copy_ms: int) -> bool:
        """Wait no longer for those that have been at it for copy_ms: they will find that what they copied has moved,
        and ask anew. Returns whether there were any."""
        for copy in self.copying.values():
            copy.since = now if copy.since is None else copy.since
        before, self.copying = (
            self.copying,
            {worker: copy for worker, copy in self.copying.items() if copy.since is None or now - copy.since < copy_ms},
        )
        return len(self.copying) < len(before)

    def base(self, worker: int, incarnation: int) -> int:
        """The version that this worker was given last, by whichever server led then; 0: none. Whether it has all of
        it, the worker knows."""
        last, version = self.given.get(worker, (-1, 0))
        return version if last == incarnation else 0

    def gave(self, release: Iterable[tuple[int, int]], version: int) -> None:
        """These (worker, incarnation) are given this version, by the server that leads."""
        self.given.update({worker: (incarnation, version) for worker, incarnation in release})

    def forget(self, fences: Iterable[tuple[int, int]]) -> None:
        """These (worker, incarnation) are shut out."""
        for worker, incarnation in fences:
            if self.given.get(worker, (incarnation + 1, 0))[0] <= incarnation:
                del self.given[worker]
            if self.near.get(worker, incarnation + 1) <= incarnation:
                del self.near[worker]
                self.copying.pop(worker, None)
