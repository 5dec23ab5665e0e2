"""How much memory a server takes beyond what it is there to hold.

Counted, from /proc/PID/smaps:

    anonymous   private pages (heap, stacks, private mappings): staging, buffers, compiled kernels
    arenas      pages of shared memory that the process itself made: each arena once, however often it
                is mapped, and in full, however many others map it

Beside it, not in it: arenas that workers made and a server merely maps (gradients where they lie) are
the workers' own memory. Whose an arena is, its name says: "shoal-gradients" is a worker's.
Pages of files (Python, libraries) are not counted: all processes of the machine share them. Nor is
what the kernel holds in socket buffers.

Beyond is anonymous and arenas, less the parameters and the rule's state arrays, less what the process
took after its start, before the table existed: the interpreter and its imports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from shoal.bench.floor import ITEM_BYTES

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (?P<mode>\S+) (?P<start>\S+) (?P<device>\S+) (?P<inode>\d+)\s*(?P<path>.*)")
_FIELD = re.compile(r"(?P<name>Rss|Anonymous): +(?P<kib>\d+) kB")
_ARENA = re.compile(r"/memfd:|/dev/shm/|/dev/zero|/SYSV|$")  # shared memory, named or not
WORKERS = "gradients"  # in the name of an arena that a worker made


class Taken(msgspec.Struct, frozen=True):
    """Bytes that one process takes. foreign: arenas of others that it maps."""

    anonymous: int
    arenas: int
    foreign: int

    @property
    def own(self) -> int:
        return self.anonymous + self.arenas


class ServerMemory(msgspec.Struct, frozen=True):
    """Bytes over all servers. table: parameters and state arrays. beyond: see above; share: of the table."""

    table_bytes: int
    own_bytes: int
    baseline_bytes: int
    foreign_bytes: int
    beyond_bytes: int
    share: float


def taken(pid: int) -> Taken:
    """What a running process takes now."""
    return parse(Path(f"/proc/{pid}/smaps").read_text().splitlines())


def together(pids: Iterable[int]) -> Taken:
    """What several take at once: memory that one of them made and others map counts once."""
    return parse(line for pid in pids for line in Path(f"/proc/{pid}/smaps").read_text().splitlines())


def parse(lines: Iterable[str]) -> Taken:
    """What the lines of a smaps file come to."""
    anonymous = 0
    shared: dict[tuple[str, ...], int] = {}  # by arena and place in it: a part mapped twice counts once
    arena: tuple[str, ...] | None = None
    for line in lines:
        if mapping := _MAPPING.match(line):
            is_arena = mapping["mode"].endswith("s") and _ARENA.match(mapping["path"])
            arena = mapping.group("path", "device", "inode", "start") if is_arena else None
        elif (field := _FIELD.match(line)) is not None:
            held = int(field["kib"]) << 10
            if field["name"] == "Anonymous":
                anonymous += held
            elif arena is not None:
                shared[arena] = max(shared.get(arena, 0), held)
    foreign = sum(held for (path, *_), held in shared.items() if WORKERS in path)
    return Taken(anonymous, sum(shared.values()) - foreign, foreign)


class Meter:
    """Follows the servers of one job from their start; the most that they took is what counts."""

    def __init__(self, pids: Sequence[int]) -> None:
        """Now is the baseline: there is no table yet."""
        self._pids = pids
        self._baseline = sum(taken(pid).own for pid in pids)
        self._most = Taken(0, 0, 0)

    def look(self) -> None:
        each = [taken(pid) for pid in self._pids]
        now = Taken(*(sum(getattr(one, name) for one in each) for name in Taken.__struct_fields__))
        if now.own >= self._most.own:
            self._most = now

    def result(self, params: int, states: int) -> ServerMemory:
        """params: elements of the table; states: arrays that the rule keeps beside them."""
        table = ITEM_BYTES * params * (1 + states)
        beyond = self._most.own - self._baseline - table
        return ServerMemory(table, self._most.own, self._baseline, self._most.foreign, beyond, beyond / table)
