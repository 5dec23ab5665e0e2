"""Arrival: the parameters that are on their way to a worker, counted as blocks of one version.

What it promises: blocks of different versions are never counted together; as soon as a newer
version is expected, what came of an older one is forgotten; what has changed since some version is taken only on top
of that version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.wire.gradient import WHOLE, Parameters


@dataclass
class Arrival:
    """The version that is arriving, or the last one that did, and which of its blocks are new here."""

    blocks: frozenset[int] = frozenset()  # in a complete version
    version: int = 0
    arrived: set[int] = field(default_factory=set)
    held: dict[int, int] = field(default_factory=dict)  # block -> the version of the bytes that came for it last

    def lacks(self, version: int, blocks: Iterable[int]) -> bool:
        """Whether these blocks bring anything: of the version that arrives, or of a newer one."""
        return version > self.version or (version == self.version and not self.arrived.issuperset(blocks))

    def expect(self, version: int) -> None:
        """A version is announced, or its first blocks came."""
        if version > self.version:
            self.version, self.arrived = version, set()

    def fits(self, parameters: Parameters) -> bool:
        """Whether these parameters can be taken: blocks that do not come whole are here as they were at the base."""
        return all(count == WHOLE or self.held.get(block) == parameters.base for block, count in parameters.parts)

    def land(self, blocks: Iterable[int]) -> None:
        """Bytes of these blocks begin to arrive where the ones before lie: those are no base for anything."""
        for block in blocks:
            self.held.pop(block, None)

    def take(self, parameters: Parameters) -> None:
        """These blocks lie where they belong; those that are read in a server's memory are no base for increments."""
        self.expect(parameters.version)
        self.arrived.update(parameters.blocks)
        if parameters.stamp:
            self.land(parameters.blocks)
        else:
            self.held.update(dict.fromkeys(parameters.blocks, parameters.version))

    def complete(self, version: int) -> bool:
        """Whether every block of `version`, or of a newer one that took its place, is there."""
        return self.version >= version and self.arrived.issuperset(self.blocks)

    def missing(self, blocks: Iterable[int]) -> tuple[int, ...]:
        """Those of `blocks` that belong to it and did not arrive."""
        return tuple(block for block in blocks if block in self.blocks and block not in self.arrived)

    def close(self, version: int) -> None:
        """The worker goes on with `version`: nothing is on its way any more."""
        self.version, self.arrived = version, set()
