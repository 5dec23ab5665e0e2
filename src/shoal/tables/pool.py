"""Memory that is lent and comes back by itself, so that its pages are touched for the first time once.

First touch of fresh pages is several times slower than a copy (FACTS.md), so staging and publishing
reuse arenas. An arena is lent again only when nothing refers to the memory any more: not the
borrower, not a slice of it, not a socket that still sends from it or receives into it.
"""

from __future__ import annotations

import weakref

import numpy as np

from shoal.kernel import Bytes


class Pool:
    """Arenas of one size. May be used from any thread."""

    def __init__(self, arena_bytes: int) -> None:
        self.arena_bytes = arena_bytes
        self._idle: list[Bytes] = []

    def take(self) -> memoryview:
        """An arena as a writable view, (arena_bytes,) uint8, with whatever it held before.

        It is idle again when this view and all views made from it are gone.
        """
        try:
            arena = self._idle.pop()
        except IndexError:
            arena = np.empty(self.arena_bytes, np.uint8)
        # A memoryview, and every slice of it, keeps the array alive that it was made from. That is a
        # fresh array for each loan, so its end is the end of the loan.
        loan = arena.view()
        weakref.finalize(loan, self._idle.append, arena).atexit = False
        return loan.data

    @property
    def idle(self) -> int:
        """How many arenas wait to be lent."""
        return len(self._idle)
