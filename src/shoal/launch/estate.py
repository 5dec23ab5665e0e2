"""What a worker that was killed leaves to the one that is started in its place: memory without a name, one a rank.

The launcher only holds it; the worker gives it its size, and says what is in it (runtime/residuals.py). Memory that
is never written costs nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress

from shoal.runtime.process import ESTATE_NAME


class Estates:
    """By rank: descriptors, open until close()."""

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}

    def of(self, rank: int) -> int | None:
        """The descriptor of this rank's memory; None where the system has no such memory."""
        if rank not in self._descriptors:
            with suppress(AttributeError, OSError):
                self._descriptors[rank] = os.memfd_create(ESTATE_NAME, os.MFD_CLOEXEC)
        return self._descriptors.get(rank)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
