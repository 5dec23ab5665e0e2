"""The least time an exchange can take on this machine: the bytes it must touch over memory's bandwidth.

What must be touched, for P float32 parameters (4 P bytes) and W workers:

    crossings   each worker's gradient goes out once, and the parameters come in once: 2 W of 4 P bytes.
                By tcp a byte is copied twice (into the kernel and out of it), inproc once; a copy
                touches each byte twice (a read and a write).
    update      the W gradients are read; parameters and the rule's state arrays are read and written.

Bandwidth is bytes touched per second by a plain copy of buffers larger than the caches, on all cores
at once. Work in the caches can beat it: below some 10M parameters the floor is only a yardstick.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ITEM_BYTES = 4
COPIES = {"tcp": 2, "inproc": 1}
BUFFER_BYTES = 64 << 20


def touched_bytes(params: int, workers: int, states: int, transport: str) -> int:
    """Bytes read or written by one exchange; states: arrays that the rule keeps beside the parameters."""
    crossings = 2 * workers * COPIES[transport] * 2
    update = workers + 2 * (1 + states)
    return (crossings + update) * ITEM_BYTES * params


class Bandwidth:
    """Measures bytes touched per second, a short look at a time, between a benchmark's rounds."""

    def __init__(self) -> None:
        self._threads = len(os.sched_getaffinity(0))
        size = BUFFER_BYTES // self._threads
        self._pairs = [(np.zeros(size, np.uint8), np.ones(size, np.uint8)) for _ in range(self._threads)]
        self._looks: list[float] = []

    def look(self) -> None:
        """Copy each pair of buffers twice (the first time warms them up), all at once."""
        with ThreadPoolExecutor(self._threads) as pool:
            for timed in (False, True):
                start = time.perf_counter()
                for copied in [pool.submit(np.copyto, *pair) for pair in self._pairs]:
                    copied.result()
                if timed:
                    self._looks.append(2 * sum(pair[0].nbytes for pair in self._pairs) / (time.perf_counter() - start))

    def bytes_per_second(self) -> float:
        """The median of all looks."""
        return statistics.median(self._looks)
