"""Lent memory comes back when the last reference to it is gone, and not before."""

from __future__ import annotations

import socket

import numpy as np

from shoal.tables.dense import Dense
from shoal.tables.layout import ALIGNMENT_BYTES, lay_out
from shoal.tables.pool import Pool


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_arena_is_reused_after_its_last_slice_is_gone() -> None:
    pool = Pool(1024)
    arena = pool.take()
    first = address(arena)
    piece = arena[100:200]
    array = np.frombuffer(piece[10:20].toreadonly(), np.uint8)
    del arena
    assert pool.idle == 0
    other = pool.take()
    assert address(other) != first
    del piece
    assert pool.idle == 0, "an array over a slice of a slice still reads it"
    del array
    assert pool.idle == 1
    again = pool.take()
    assert address(again) == first
    del again, other
    assert pool.idle == 2


def test_a_view_inside_another_object_holds_the_arena() -> None:
    """As a transport does that keeps what it has yet to send."""
    pool = Pool(64)
    left, right = socket.socketpair()
    queue = [pool.take()]
    queue[0][:4] = b"hold"
    assert pool.idle == 0
    left.sendmsg(queue)
    assert right.recv(4) == b"hold"
    queue.clear()
    assert pool.idle == 1
    left.close()
    right.close()


def test_layout_is_aligned_and_disjoint() -> None:
    slices, total = lay_out([4, 64, 100, 2])
    assert [(piece.start, piece.stop) for piece in slices] == [(0, 4), (64, 128), (128, 228), (256, 258)]
    assert total == 320
    assert total % ALIGNMENT_BYTES == 0
    assert lay_out([]) == ((), 0)


def test_dense_blocks_do_not_overlap() -> None:
    table = Dense([3, 17, 1], [2, 0, 1])
    assert [len(states) for states in table.states] == [2, 0, 1]
    arrays = [*table.parameters, *(state for states in table.states for state in states)]
    for number, array in enumerate(arrays, start=1):
        assert not array.any()
        array.fill(number)
    assert [set(array.tolist()) for array in arrays] == [{float(number)} for number in range(1, len(arrays) + 1)]
    assert [array.size for array in table.parameters] == [3, 17, 1]
    assert table.steps.tolist() == [0, 0, 0]
