"""What counts as a server's memory."""

from __future__ import annotations

import mmap
import os

from shoal.bench.memory import Meter, Taken, parse, taken

SMAPS = """\
55f0-5600 r-xp 00000000 fe:00 1234                       /usr/bin/python3.11
Size:               4096 kB
Rss:                4000 kB
Anonymous:             8 kB
7f00-7f10 rw-p 00000000 00:00 0
Rss:                 100 kB
Anonymous:           100 kB
7f10-7f20 rw-s 00000000 00:01 77                         /memfd:shoal-server-0 (deleted)
Rss:                2000 kB
Anonymous:             0 kB
7f20-7f30 rw-s 00000000 00:01 77                         /memfd:shoal-server-0 (deleted)
Rss:                1500 kB
Anonymous:             0 kB
7f30-7f40 rw-s 00100000 00:01 77                         /memfd:shoal-server-0 (deleted)
Rss:                 300 kB
Anonymous:             0 kB
7f40-7f50 r--s 00000000 00:01 78                         /memfd:shoal-gradients (deleted)
Rss:                5000 kB
Anonymous:             0 kB
7f50-7f60 r--s 00000000 fe:00 99                         /usr/lib/locale/locale-archive
Rss:                 700 kB
Anonymous:             0 kB
"""


def test_private_pages_and_own_arenas_count_once_and_those_of_workers_beside() -> None:
    found = parse(SMAPS.splitlines())
    assert found == Taken(anonymous=108 << 10, arenas=2300 << 10, foreign=5000 << 10)
    assert found.own == 2408 << 10


def test_what_a_process_allocates_is_seen_and_the_most_is_kept() -> None:
    meter = Meter([os.getpid()])
    before = taken(os.getpid())
    size = 64 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as private, mmap.mmap(-1, size) as shared:
        private[::4096] = shared[::4096] = bytes(size // 4096)
        now = taken(os.getpid())
        meter.look()
    assert now.anonymous - before.anonymous > 0.9 * size
    assert now.arenas - before.arenas > 0.9 * size
    meter.look()
    memory = meter.result(params=1 << 20, states=2)
    assert memory.table_bytes == 3 * 4 << 20
    assert memory.beyond_bytes > 1.8 * size - memory.table_bytes
