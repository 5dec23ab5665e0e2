"""The floor of the exchange."""

from __future__ import annotations

from shoal.bench.floor import Bandwidth, touched_bytes


def test_bytes_are_counted_as_the_docstring_says() -> None:
    # 2 workers, AdamW: 4 crossings of 2 copies that touch twice; 2 gradients, 3 arrays read and written.
    assert touched_bytes(1000, 2, 2, "tcp") == 4000 * (4 * 2 * 2 + 2 + 6)
    # By shared memory: one copy of each gradient, which touches twice; parameters lie where they are used.
    assert touched_bytes(1000, 2, 2, "shm") == 4000 * (2 * 2 + 2 + 6)
    assert touched_bytes(1000, 2, 2, "inproc") == 4000 * (4 * 1 * 2 + 2 + 6)


def test_bandwidth_is_that_of_a_memory() -> None:
    bandwidth = Bandwidth()
    bandwidth.look()
    assert 1e8 < bandwidth.bytes_per_second() < 1e13
