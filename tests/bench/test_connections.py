"""Idle workers cost a server next to nothing, whether few or a thousand."""

from __future__ import annotations

import pytest

from shoal.bench.connections import idle_connections

EACH_BYTES_MAX = 16 << 10


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_idle_connections_take_little_memory_and_leave_the_busy_one_its_speed(count: int) -> None:
    idle = idle_connections(count)
    assert idle.connections == count
    assert idle.bytes < count * EACH_BYTES_MAX
    assert idle.slowdown < 3  # noise; were each of them looked at per read, it would be far above
