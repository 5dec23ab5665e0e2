"""What a simulated worker's codec has lost, as the contributions whose codes it lacks.

With error feedback e' = p - C(p): a residual is known by the codes that were taken from it, and is right if they are
the codes that the log took, no more and no less. Where it lies outlives the worker's processes (core/halves.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shoal.core.halves import LABEL_WORDS, Halves
from shoal.vocabulary import Contributor

Taken = tuple[Contributor, ...]  # in the order of the log


@dataclass
class Estate:
    """Memory of one rank, as the launcher holds it."""

    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, LABEL_WORDS), np.int64))
    halves: list[Taken] = field(default_factory=lambda: [(), ()])


@dataclass(frozen=True)
class Residual:
    """That of a worker, in a snapshot."""

    worker: int
    taken: Taken


@dataclass
class Feedback:
    """As runtime/encoder.py has it, of one process."""

    estate: Estate
    halves: Halves = field(init=False)
    sealed: bool = False

    def __post_init__(self) -> None:
        self.halves = Halves(self.estate.labels)

    @property
    def taken(self) -> Taken:
        """The base."""
        return () if self.halves.empty else self.estate.halves[self.halves.base]

    def lost_until(self, used: tuple[int, int]) -> Taken | None:
        """What was lost up to this contribution."""
        half = self.halves.fitting(used)
        return None if half is None else self.estate.halves[half]

    def begin(self) -> None:
        """A gradient is being encoded; whoever dies now leaves half of it."""
        self.halves.spoil()
        self.estate.halves[self.halves.next] = ()

    def seal(self, who: Contributor) -> None:
        self.estate.halves[self.halves.next] = (*self.taken, who)
        self.halves.seal((who.incarnation, who.clock))
        self.sealed = True

    def end(self, committed: bool) -> None:
        """The step is over. What no commit took is lost whole, so that no code is taken from it."""
        if self.sealed and not committed:
            self.halves.spoil()
            self.estate.halves[self.halves.next] = self.taken
            self.halves.reseal()
        if self.sealed:
            self.halves.advance()
        self.sealed = False
