"""Memory that processes of one host share. Nothing of it has a name, so nothing is left when they are killed.

An Arena is a memfd that its owner alone may write: its size and its writers are sealed before anyone
else gets the descriptor. A Region is address space into which others' arenas are mapped, piece by
piece, so that what lies on several servers is one run of memory here. It sees what the owners write;
what is written into it here stays here (private mappings copy a page when it is written), so a
worker can spoil its own parameters but nobody else's.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from dataclasses import dataclass
from functools import cache

import numpy as np

from shoal.errors import ProtocolError

PAGE_BYTES = mmap.PAGESIZE

_SEAL_FUTURE_WRITE = 0x0010  # from <linux/fcntl.h>, Linux 5.1; Python names it from 3.13 on
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_MAP_FIXED = 0x10  # from <sys/mman.h>
_MAP_NORESERVE = 0x4000
_MREMAP_MAYMOVE_FIXED = 1 | 2
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23  # Linux 5.14
_MAP_FAILED = ctypes.c_void_p(-1).value
_PAGEMAP_ENTRY_BYTES = 8  # see proc_pid_pagemap(5)
_PAGEMAP_PRESENT, _PAGEMAP_OF_FILE = np.uint64(1 << 63), np.uint64(1 << 61)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True)
class Range:
    """Bytes start..stop (exclusive) of an arena or region; both are whole pages."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Arena:
    """Memory that this process writes and others may map. Pages that are never touched cost nothing.

    memory: (size_bytes,) uint8, writable. descriptor: to be passed on; it is closed with the arena's
    last reference, the memory lives as long as anyone maps it.
    """

    def __init__(self, name: str, size_bytes: int) -> None:
        self.size_bytes = max(PAGE_BYTES, _whole_pages(size_bytes))
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, self.size_bytes)
        # The mapping duplicates the descriptor, and is unmapped when no view of it is left.
        self.memory = memoryview(mmap.mmap(self.descriptor, self.size_bytes))
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS | _SEAL_FUTURE_WRITE)

    def touch(self, part: Range) -> None:
        """Have the pages of this part there, so that no step waits for their first touch."""
        _libc.madvise(self._address + part.start, part.size, _MADV_POPULATE_WRITE)  # a kernel without it: touched later

    def seclude(self) -> None:
        """What is written from here on stays in this process: whoever maps the arena sees it as it is now."""
        _map(self._address, self.size_bytes, self.descriptor, 0, _MAP_FIXED)

    @property
    def _address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))


@cache
def available() -> bool:
    """Whether this system has what arenas are made of (Linux 5.1 or newer, and no sandbox that forbids it)."""
    try:
        Arena("shoal-probe", PAGE_BYTES)
    except (AttributeError, OSError):
        return False
    return True


def reader(descriptor: int, size_bytes: int) -> memoryview:
    """Another process's arena, read only: (size_bytes,) uint8. Takes over the descriptor.

    ProtocolError unless it is one that cannot shrink under its readers and holds size_bytes at least.
    """
    try:
        _check(descriptor, size_bytes)
        mapping = mmap.mmap(descriptor, max(PAGE_BYTES, _whole_pages(size_bytes)), prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    return memoryview(mapping)[:size_bytes]


class Region:
    """One run of address space, private to this process, with parts of others' arenas mapped into it.

    memory: (size_bytes,) uint8, writable: writes stay in this process. The region lives as long as
    any view of its memory does.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = max(PAGE_BYTES, _whole_pages(size_bytes))
        self._address = _map(None, self.size_bytes, -1, 0, mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self._lock = threading.Lock()  # the loop may detach while the training thread looks
        self._mapped: list[tuple[Range, int]] = []  # the part, and the descriptor of the arena that lies there
        self._audited = 0  # pages looked at so far, round and round
        self._page_table_of = 0  # process
        block = (ctypes.c_ubyte * self.size_bytes).from_address(self._address)
        weakref.finalize(block, _release, self._address, self.size_bytes, self._mapped)
        self.memory = memoryview(block).cast("B")

    def place(self, descriptor: int, part: Range) -> None:
        """Map this part of an arena at the same offset of the region, in place of what was there. Takes over the
        descriptor.

        ProtocolError for an arena that may shrink or is too small.
        """
        try:
            _check(descriptor, part.stop)
        except BaseException:
            os.close(descriptor)
            raise
        with self._lock:
            for index, (known, before) in enumerate(self._mapped):
                if known == part and part.size:
                    os.close(before)
                    self._mapped[index] = part, descriptor
                    break
            else:
                self._mapped.append((part, descriptor))
            self._lay(part, descriptor)

    def again(self) -> Region:
        """Another region with the same arenas mapped into it."""
        other = Region(self.size_bytes)
        with self._lock:
            for part, descriptor in self._mapped:
                other.place(os.dup(descriptor), part)
        return other

    def renew(self) -> None:
        """Forget what was written here: all mapped parts show their arenas again."""
        with self._lock:
            for part, descriptor in self._mapped:
                self._lay(part, descriptor)

    def detach(self) -> None:
        """Keep what is there now: from here on the owners' writes are not seen. Readers notice nothing."""
        with self._lock:
            while self._mapped:
                part, descriptor = self._mapped.pop()
                if part.size:
                    copy = _map(None, part.size, -1, 0, mmap.MAP_ANONYMOUS)
                    ctypes.memmove(copy, self._address + part.start, part.size)
                    place = ctypes.c_void_p(self._address + part.start)
                    if _libc.mremap(copy, part.size, part.size, _MREMAP_MAYMOVE_FIXED, place) == _MAP_FAILED:
                        raise OSError(ctypes.get_errno(), "mremap")
                os.close(descriptor)

    def written(self, pages_min: int, share: float = 0.0) -> bool:
        """Look at the next mapped pages, so many or this share of all, round and round: was any written here?

        False as well where the system does not show a process its page table.
        """
        with self._lock:
            try:
                return self._written(pages_min, share)
            except OSError:
                return False

    def _written(self, pages_min: int, share: float) -> bool:
        found = False
        for part in self._next_parts(max(pages_min, int(share * self.size_bytes / PAGE_BYTES))):
            first = (self._address + part.start) // PAGE_BYTES * _PAGEMAP_ENTRY_BYTES
            entries = os.pread(self._page_table(), part.size // PAGE_BYTES * _PAGEMAP_ENTRY_BYTES, first)
            flags = np.frombuffer(entries, np.uint64) & (_PAGEMAP_PRESENT | _PAGEMAP_OF_FILE)
            found = found or bool((flags == _PAGEMAP_PRESENT).any())
        return found

    def _page_table(self) -> int:
        """A descriptor of this process's page table: opened once, and again in a child that was forked."""
        if self._page_table_of != os.getpid():
            self._page_table_of = os.getpid()
            descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            self._page_table_descriptor = descriptor
        return self._page_table_descriptor

    def _next_parts(self, pages: int) -> list[Range]:
        """The next `pages` pages of what is mapped (each at most once)."""
        total = sum(part.size for part, _ in self._mapped) // PAGE_BYTES
        parts: list[Range] = []
        left = min(pages, total)
        while left:
            skip = self._audited % total * PAGE_BYTES
            for part, _ in self._mapped:
                if skip < part.size:
                    count = min(left, (part.size - skip) // PAGE_BYTES)
                    parts.append(Range(part.start + skip, part.start + skip + count * PAGE_BYTES))
                    self._audited, left = self._audited + count, left - count
                    break
                skip -= part.size
        return parts

    def _lay(self, part: Range, descriptor: int) -> None:
        if part.size:
            _map(self._address + part.start, part.size, descriptor, part.start, _MAP_FIXED)
            _libc.madvise(self._address + part.start, part.size, _MADV_POPULATE_READ)


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def _check(descriptor: int, size_bytes: int) -> None:
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise ProtocolError("the descriptor that came is no arena: its memory could vanish under its readers")
    found = os.fstat(descriptor).st_size
    if found < size_bytes:
        raise ProtocolError(f"the arena that came has {found} bytes where {size_bytes} are expected")


def _map(address: int | None, size: int, descriptor: int, offset: int, flags: int) -> int:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    found = _libc.mmap(address, size, protection, mmap.MAP_PRIVATE | flags, descriptor, offset)
    if found == _MAP_FAILED or found is None:
        raise OSError(ctypes.get_errno(), f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
    return int(found)


def _release(address: int, size: int, mapped: list[tuple[Range, int]]) -> None:
    _libc.munmap(address, size)
    for _, descriptor in mapped:
        os.close(descriptor)
