"""What codecs have lost of one worker's gradients so far, in memory that may outlive its process.

There are two halves. One, the base, is what was lost up to the last contribution that the log took; the other is
written for the contribution under way, and says so only when all of it is there. So whoever is killed, at any moment,
leaves a whole half for each thing the log may say of its last contribution, and its successor takes the one that fits.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Mapping
from threading import Condition

import numpy as np

from shoal.arena import PAGE_BYTES
from shoal.codec.codec import FLOAT32
from shoal.kernel import Floats, read_only
from shoal.tables.layout import lay_out

NONE = (-1, 0)  # of no contribution

# What each half says of itself: 0 or how many there were before it, and the contribution that it presumes in the log.
_GENERATION, _INCARNATION, _CLOCK = range(3)
_WORDS = 8


class Residuals:
    """elements: by name of what is kept, its number of float32. descriptor: of anonymous memory that a process before
    this one may have written; None: memory of its own.

    Used by the training thread, but for pin() and take().
    """

    def __init__(self, elements: Mapping[str, int], descriptor: int | None = None) -> None:
        self._names = tuple(elements)
        slices, half_bytes = lay_out(4 * count for count in elements.values())
        size_bytes = PAGE_BYTES + 2 * half_bytes
        if descriptor is not None and os.fstat(descriptor).st_size != size_bytes:
            os.ftruncate(descriptor, 0)  # what was kept there was of another table
            os.ftruncate(descriptor, size_bytes)
        memory = memoryview(mmap.mmap(-1 if descriptor is None else descriptor, size_bytes))
        words = np.frombuffer(memory, np.int64, 1 + 2 * _WORDS)
        self._of, self._labels = words[:1], words[1:].reshape(2, _WORDS)
        self._multipliers = self._labels[:, _CLOCK + 1].view(np.float64)  # of the gradients that each half is of
        self._halves = [
            {
                name: np.frombuffer(memory[start + piece.start : start + piece.stop], np.float32)
                for name, piece in zip(elements, slices, strict=True)
            }
            for start in (PAGE_BYTES, PAGE_BYTES + half_bytes)
        ]
        fingerprint = zlib.crc32(repr(elements).encode()) + 1
        if self._of[0] != fingerprint:
            self._labels[:] = 0
            self._of[0] = fingerprint
        self._base, self._empty = 0, True
        self._used = NONE
        self._written = False  # the other half is being written, or is
        self._rest = Condition()
        self._pins = [0, 0]

    @property
    def empty(self) -> bool:
        """Nothing was lost so far."""
        return self._empty

    @property
    def multiplier(self) -> float:
        """Of the gradients that the base is of."""
        return 1.0 if self._empty else float(self._multipliers[self._base])

    def base(self, name: str) -> Floats | None:
        """(elements,): what was lost so far, not to be written; None: nothing."""
        return None if self._empty else self._halves[self._base][name]

    def next(self, name: str) -> Floats:
        """(elements,): where it goes what will have been lost. After begin()."""
        return self._halves[1 - self._base][name]

    def adopt(self, used: tuple[int, int]) -> bool:
        """Begin with what a process before this one has left. used: (incarnation, clock) of the last contribution of
        this rank in the log. False: nothing that fits, so nothing was lost so far."""
        self._used = used
        fits = [half for half in (0, 1) if self._label(half) == used and self._labels[half, _GENERATION]]
        self._empty = not fits
        if self._empty:
            self._labels[:] = 0
            return False
        self._base = max(fits, key=lambda half: int(self._labels[half, _GENERATION]))
        return True

    def load(self, arrays: Mapping[str, Floats]) -> None:
        """Begin with these, of gradients as they are; what is of other names or sizes is left out."""
        for name, target in self._halves[self._base].items():
            found = arrays.get(name)
            target[:] = found.reshape(-1) if found is not None and found.size == target.size else 0
        self._multipliers[self._base], self._empty = 1.0, False

    def begin(self) -> None:
        """The other half will be written. Waits until nobody reads it. From any thread, more than once."""
        with self._rest:
            if not self._written:
                self._rest.wait_for(lambda: not self._pins[1 - self._base])
                self._labels[1 - self._base, _GENERATION] = 0
                self._written = True

    def drop(self) -> None:
        """What was written never was."""
        self._written = False

    def seal(self, incarnation: int, clock: int, multiplier: float) -> None:
        """The other half is whole, and holds if this contribution is in the log."""
        self._label_next((incarnation, clock), multiplier)

    def unseal(self) -> None:
        """No commit took the contribution: the other half will be changed."""
        self._labels[1 - self._base, _GENERATION] = 0

    def reseal(self) -> None:
        """It is whole again, and holds of the log as it was."""
        self._label_next(self._used, float(self._multipliers[1 - self._base]))

    def advance(self) -> None:
        """The other half is the base from here on."""
        with self._rest:
            self._base, self._empty, self._written = 1 - self._base, False, False
            self._used = self._label(self._base)

    def pin(self) -> int | None:
        """Have the base, as it is now, stay until it is taken; returns its number, None: it is empty."""
        with self._rest:
            if self._empty:
                return None
            self._pins[self._base] += 1
            return self._base

    def take(self, half: int) -> dict[str, Floats]:
        """A copy of what was pinned, of gradients as they are; it may change from here on."""
        scale = np.float32(self._multipliers[half])
        found: dict[str, Floats] = {}
        try:
            for name, kept in self._halves[half].items():
                found[name] = np.empty(kept.size, np.float32)
                FLOAT32.first(found[name], read_only(kept), scale)
        finally:
            with self._rest:
                self._pins[half] -= 1
                self._rest.notify_all()
        return found

    def _label(self, half: int) -> tuple[int, int]:
        label = self._labels[half]
        return int(label[_INCARNATION]), int(label[_CLOCK])

    def _label_next(self, contribution: tuple[int, int], multiplier: float) -> None:
        half = 1 - self._base
        self._labels[half, _INCARNATION], self._labels[half, _CLOCK] = contribution
        self._multipliers[half] = multiplier
        # Last of all: only with it does the half count.
        self._labels[half, _GENERATION] = int(self._labels[self._base, _GENERATION]) + 1
