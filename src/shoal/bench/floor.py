"""The least time an exchange can take on this machine: the bytes it must touch over memory's bandwidth.

What must be touched, for P float32 parameters (4 P bytes) and W workers:

    crossings   tcp: each worker's gradient goes out and the parameters come in, 2 W of 4 P bytes, each
                copied twice (into the kernel and out of it); inproc: the same, copied once. A copy
                touches each byte twice (a read and a write).
                shm: each worker's gradient is copied once, into the arena that the servers read;
                parameters cross without a copy, for the worker's are the servers'.
    update      the W gradients are read; parameters and the rule's state arrays are read and written.

Bandwidth is bytes touched per second by all cores at once over buffers larger than their caches: by a copy
or by an addition in place, whichever is quicker at the time (a copy often also reads the lines that it
overwrites, which nobody counts). Work in the caches can beat it: below some 10M parameters the floor is
only a yardstick.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

ITEM_BYTES = 4
COPIES = {"shm": 1, "tcp": 4, "inproc": 2}  # of 4 P bytes, for each worker and step
BUFFER_BYTES = 256 << 20
PASSES = 2  # of each kind in a look; the quickest counts

_ZERO = np.float32(0)


def touched_bytes(params: int, workers: int, states: int, transport: str) -> int:
    """Bytes read or written by one exchange; states: arrays that the rule keeps beside the parameters."""
    crossings = 2 * workers * COPIES[transport]
    update = workers + 2 * (1 + states)
    return (crossings + update) * ITEM_BYTES * params


class Bandwidth:
    """Measures bytes touched per second, a short look at a time, between a benchmark's rounds."""

    def __init__(self) -> None:
        self._threads = len(os.sched_getaffinity(0))
        size = BUFFER_BYTES // ITEM_BYTES // self._threads
        self._pairs = [(np.ones(size, np.float32), np.ones(size, np.float32)) for _ in range(self._threads)]
        self._looks: list[float] = []

    def begin(self) -> None:
        """Forget the looks so far."""
        self._looks.clear()

    def look(self) -> None:
        """Measure now."""
        with ThreadPoolExecutor(self._threads) as pool:
            self._looks.append(max(self._pass(pool, kernel) for kernel in (_copy, _add) for _ in range(PASSES)))

    def _pass(self, pool: ThreadPoolExecutor, kernel: Callable[[Floats, Floats], None]) -> float:
        start = time.perf_counter()
        for done in [pool.submit(kernel, *pair) for pair in self._pairs]:
            done.result()
        return 2 * sum(pair[0].nbytes for pair in self._pairs) / (time.perf_counter() - start)

    def bytes_per_second(self) -> float:
        """The median of the looks since begin()."""
        return statistics.median(self._looks)


def _copy(into: Floats, source: Floats) -> None:
    np.copyto(into, source)


def _add(into: Floats, _: Floats) -> None:
    np.add(into, _ZERO, out=into)
