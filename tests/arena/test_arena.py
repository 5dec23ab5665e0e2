"""An arena is written by its owner alone, cannot vanish under its readers, and leaves no trace."""

from __future__ import annotations

import gc
import mmap
import os

import numpy as np
import pytest

from shoal.arena import PAGE_BYTES, Arena, Range, Region, reader
from shoal.errors import ProtocolError


def pages(start: int, stop: int) -> Range:
    return Range(start * PAGE_BYTES, stop * PAGE_BYTES)


def two_owners() -> tuple[Arena, Arena, Region]:
    one, two, region = Arena("one", 6 * PAGE_BYTES), Arena("two", 6 * PAGE_BYTES), Region(6 * PAGE_BYTES)
    region.place(os.dup(one.descriptor), pages(0, 2))
    region.place(os.dup(two.descriptor), pages(2, 6))
    return one, two, region


def test_a_reader_sees_what_the_owner_writes_and_cannot_write() -> None:
    arena = Arena("one", 100)
    seen = reader(os.dup(arena.descriptor), 100)
    arena.memory[99] = 7
    assert seen[99] == 7 and seen.nbytes == 100 and seen.readonly


def test_a_secluded_arena_stays_for_its_readers_as_it_is() -> None:
    arena = Arena("one", 2 * PAGE_BYTES)
    seen, own = reader(os.dup(arena.descriptor), 2 * PAGE_BYTES), np.frombuffer(arena.memory, np.uint8)
    own[0] = 7
    arena.seclude()
    own[0] = own[PAGE_BYTES] = 9
    assert seen[0] == 7 and seen[PAGE_BYTES] == 0 and list(own[::PAGE_BYTES]) == [9, 9]
    late = reader(os.dup(arena.descriptor), 2 * PAGE_BYTES)
    assert late[0] == 7


def test_nobody_else_can_map_an_arena_to_write_or_change_its_size() -> None:
    arena = Arena("one", PAGE_BYTES)
    with pytest.raises(PermissionError):
        mmap.mmap(arena.descriptor, PAGE_BYTES)
    for size in (0, 2 * PAGE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.descriptor, size)


def test_memory_that_could_vanish_or_is_too_small_is_refused() -> None:
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, PAGE_BYTES)
    with pytest.raises(ProtocolError, match="could vanish under its readers"):
        reader(unsealed, 10)
    pipe, other = os.pipe()
    os.close(other)
    with pytest.raises(ProtocolError, match="is no arena"):
        reader(pipe, 10)
    arena = Arena("small", PAGE_BYTES)
    with pytest.raises(ProtocolError, match=f"has {PAGE_BYTES} bytes where {PAGE_BYTES + 1} are expected"):
        reader(os.dup(arena.descriptor), PAGE_BYTES + 1)
    with pytest.raises(ProtocolError, match="are expected"):
        Region(4 * PAGE_BYTES).place(os.dup(arena.descriptor), pages(0, 2))


def test_parts_of_several_arenas_are_one_run_of_memory() -> None:
    one, two, region = two_owners()
    one.memory[: 6 * PAGE_BYTES] = b"1" * (6 * PAGE_BYTES)
    two.memory[: 6 * PAGE_BYTES] = b"2" * (6 * PAGE_BYTES)
    assert bytes(region.memory) == b"1" * (2 * PAGE_BYTES) + b"2" * (4 * PAGE_BYTES)


@pytest.mark.parametrize("page", range(6))
def test_what_is_written_into_a_region_stays_there_is_found_and_forgotten(page: int) -> None:
    one, two, region = two_owners()
    assert not region.written(100)
    region.memory[page * PAGE_BYTES] = 9
    assert not any(one.memory) and not any(two.memory)
    assert [region.written(1) for _ in range(6)].count(True) == 1, "a page at a time, round and round"
    assert region.written(1, share=1.0)
    region.renew()
    assert not region.written(100) and not any(region.memory)


def test_a_detached_region_keeps_what_it_showed() -> None:
    one, two, region = two_owners()
    one.memory[0], two.memory[3 * PAGE_BYTES] = 1, 2
    view = np.frombuffer(region.memory, np.uint8)
    region.detach()
    one.memory[0] = two.memory[3 * PAGE_BYTES] = 5
    assert view[0] == 1 and view[3 * PAGE_BYTES] == 2 and not region.written(100)
    region.detach()  # again: nothing is left to do


def test_memory_lives_as_long_as_a_view_of_it_and_no_descriptor_is_leaked() -> None:
    gc.collect()  # what earlier tests left
    before = len(os.listdir("/proc/self/fd"))
    one, two, region = two_owners()
    one.memory[5] = 3
    view = np.frombuffer(region.memory, np.uint8)
    seen = reader(os.dup(one.descriptor), 10)
    del one, two, region
    gc.collect()
    assert view[5] == 3 and seen[5] == 3
    del view, seen
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
