"""What codecs that lose something have in common; most of them encode records, of so many elements each.

Any run of whole records can be decoded on its own, so combining decodes in pieces that stay in the core's cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal.kernel import Bytes, Floats, read_only

Decode = Callable[[Floats, Bytes, np.float32], None]


@dataclass(frozen=True)
class Packed(ABC):
    """One such codec. feedback: it must not be used without error feedback.

    Values are (elements,) float32, encoded (bytes_of(elements),) uint8, both contiguous.
    """

    name: str
    feedback: bool

    item: ClassVar[type[np.uint8]] = np.uint8

    @abstractmethod
    def bytes_of(self, elements: int) -> int:
        """Bytes that a block of so many elements takes on the wire."""

    @abstractmethod
    def encode(self, encoded: Bytes, values: Floats, seed: int) -> None:
        """encoded = values. seed: of what is left to chance; the same gives the same bits."""

    @abstractmethod
    def piece(self, encoded: Bytes, start: int, stop: int) -> Bytes:
        """What first and add decode elements start..stop of a block from. start: the first of a record."""

    @property
    @abstractmethod
    def first(self) -> Decode:
        """first(total, encoded, weight): total = weight * decoded."""

    @property
    @abstractmethod
    def add(self) -> Decode:
        """add(total, encoded, weight): total += weight * decoded."""

    def warm(self) -> None:
        """Compile a server's kernels (or load them from disk), so that the first step does not wait for it."""
        values, encoded = np.zeros(1, np.float32), np.zeros(self.bytes_of(1), np.uint8)
        self.first(values, read_only(encoded), np.float32(1))
        self.add(values, read_only(encoded), np.float32(1))


@dataclass(frozen=True)
class Recorded(Packed):
    """One that encodes a block as one record after the other."""

    record: ClassVar[int]  # elements in each record but the last; a power of two

    @abstractmethod
    def record_bytes(self, elements: int) -> int:
        """Bytes of a record of so many elements, 1 .. record."""

    def bytes_of(self, elements: int) -> int:
        return self.offset(elements)

    def offset(self, start: int) -> int:
        """Where element `start` of a block, the first of a record, is encoded; or where so many end."""
        whole, rest = divmod(start, self.record)
        return whole * self.record_bytes(self.record) + (self.record_bytes(rest) if rest else 0)

    def piece(self, encoded: Bytes, start: int, stop: int) -> Bytes:
        return encoded[self.offset(start) : self.offset(stop)]
