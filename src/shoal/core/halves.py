"""Two halves of memory, of which one always tells what a worker's codecs had lost.

The base is what was lost up to the last contribution that the log took. The other half is written for the
contribution under way, and says so only when all of it is there. So whoever is killed, at any moment, leaves a
whole half for each thing the log may say of its last contribution, and its successor takes the one that fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.wire.forming import NOTHING

# What each half says of itself: 0 or how many there were before it, and the contribution that it presumes in the log.
_GENERATION, _INCARNATION, _CLOCK = range(3)
LABEL_WORDS = 3


@dataclass
class Halves:
    """Which half is what. labels: (2, LABEL_WORDS or more) int64, in memory that outlives whoever writes it."""

    labels: npt.NDArray[np.int64]
    base: int = 0
    empty: bool = True  # nothing was lost so far
    used: tuple[int, int] = NOTHING  # the contribution that the base presumes in the log

    @property
    def next(self) -> int:
        """The half that is not the base."""
        return 1 - self.base

    def adopt(self, used: tuple[int, int]) -> bool:
        """Begin with what a process before this one has left. used: (incarnation, clock) of the last contribution of
        this rank in the log. False: nothing that fits, so nothing was lost so far."""
        self.used, fits = used, self.fitting(used)
        self.empty = fits is None
        if fits is None:
            self.labels[:] = 0
        else:
            self.base = fits
        return not self.empty

    def fitting(self, used: tuple[int, int]) -> int | None:
        """The half with what was lost up to this contribution, also before adopt(); None: there is none any more."""
        fits = [half for half in (0, 1) if self._label(half) == used and self.labels[half, _GENERATION]]
        return max(fits, key=lambda half: int(self.labels[half, _GENERATION]), default=None)

    def fill(self) -> None:
        """The base has been written: it holds what was lost up to `used`."""
        self._write(self.base, self.used, 1)
        self.empty = False

    def spoil(self) -> None:
        """The next half is about to be written, or changed."""
        self.labels[self.next, _GENERATION] = 0

    def seal(self, contribution: tuple[int, int]) -> None:
        """The next half is whole, and holds if this contribution (incarnation, clock) is in the log."""
        self._write(self.next, contribution, int(self.labels[self.base, _GENERATION]) + 1)

    def reseal(self) -> None:
        """It is whole again, and holds of the log as it was: no commit took the contribution."""
        self.seal(self.used)

    def advance(self) -> None:
        """The next half is the base from here on."""
        self.base, self.empty = self.next, False
        self.used = self._label(self.base)

    def _write(self, half: int, contribution: tuple[int, int], generation: int) -> None:
        self.labels[half, [_INCARNATION, _CLOCK]] = contribution
        self.labels[half, _GENERATION] = generation  # last of all: only with it does the half count

    def _label(self, half: int) -> tuple[int, int]:
        label = self.labels[half]
        return int(label[_INCARNATION]), int(label[_CLOCK])
