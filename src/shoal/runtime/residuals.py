"""What codecs have lost of one worker's gradients so far, in memory that may outlive its process: core/halves.py."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Mapping
from threading import Condition

import numpy as np

from shoal.arena import PAGE_BYTES
from shoal.codec.codec import FLOAT32
from shoal.core.halves import LABEL_WORDS, Halves
from shoal.kernel import Floats, read_only
from shoal.tables.layout import lay_out

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
        of, labels = words[:1], words[1:].reshape(2, _WORDS)
        self._multipliers = labels[:, LABEL_WORDS].view(np.float64)  # of the gradients that each half is of
        self._arrays = [
            {
                name: np.frombuffer(memory[start + piece.start : start + piece.stop], np.float32)
                for name, piece in zip(elements, slices, strict=True)
            }
            for start in (PAGE_BYTES, PAGE_BYTES + half_bytes)
        ]
        fingerprint = zlib.crc32(repr(elements).encode()) + 1
        if of[0] != fingerprint:
            labels[:] = 0
            of[0] = fingerprint
        self._halves = Halves(labels)
        self._written = False  # the other half is being written, or is
        self._rest = Condition()
        self._pins = [0, 0]

    @property
    def empty(self) -> bool:
        """Nothing was lost so far."""
        return self._halves.empty

    @property
    def multiplier(self) -> float:
        """Of the gradients that the base is of."""
        return 1.0 if self.empty else float(self._multipliers[self._halves.base])

    def base(self, name: str) -> Floats | None:
        """(elements,): what was lost so far, not to be written; None: nothing."""
        return None if self.empty else self._arrays[self._halves.base][name]

    def next(self, name: str) -> Floats:
        """(elements,): where it goes what will have been lost. After begin()."""
        return self._arrays[self._halves.next][name]

    def adopt(self, used: tuple[int, int]) -> bool:
        """See Halves."""
        return self._halves.adopt(used)

    def load(self, arrays: Mapping[str, Floats]) -> None:
        """Begin with these, of gradients as they are; what is of other names or sizes is left out."""
        for name, target in self._arrays[self._halves.base].items():
            found = arrays.get(name)
            target[:] = found.reshape(-1) if found is not None and found.size == target.size else 0
        self._multipliers[self._halves.base] = 1.0
        self._halves.fill()

    def begin(self) -> None:
        """The next half will be written. Waits until nobody reads it. From any thread, more than once."""
        with self._rest:
            if not self._written:
                self._rest.wait_for(lambda: not self._pins[self._halves.next])
                self._halves.spoil()
                self._written = True

    def drop(self) -> None:
        """What was written never was."""
        self._written = False

    def seal(self, incarnation: int, clock: int, multiplier: float) -> None:
        """The next half is whole, and holds if this contribution is in the log."""
        self._multipliers[self._halves.next] = multiplier
        self._halves.seal((incarnation, clock))

    def unseal(self) -> None:
        """No commit took the contribution: the next half will be changed."""
        self._halves.spoil()

    def reseal(self) -> None:
        """It is whole again, and holds of the log as it was."""
        self._halves.reseal()

    def advance(self) -> None:
        """The next half is the base from here on."""
        with self._rest:
            self._halves.advance()
            self._written = False

    def pin(self, used: tuple[int, int]) -> int | None:
        """Have what was lost up to this contribution stay until it is taken; returns the number of its half, None:
        there is none, or not any more."""
        with self._rest:
            half = self._halves.fitting(used)
            if half is not None:
                self._pins[half] += 1
            return half

    def take(self, half: int) -> dict[str, Floats]:
        """A copy of what was pinned, of gradients as they are; it may change from here on."""
        scale = np.float32(self._multipliers[half])
        found: dict[str, Floats] = {}
        try:
            for name, kept in self._arrays[half].items():
                found[name] = np.empty(kept.size, np.float32)
                FLOAT32.first(found[name], read_only(kept), scale)
        finally:
            with self._rest:
                self._pins[half] -= 1
                self._rest.notify_all()
        return found
