"""Sums that are written past the caches are, to the bit, those that are added up where they lie."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from shoal.core import combined as module
from shoal.core import machine as k
from shoal.core.store import Store
from shoal.optim import SGD
from shoal.storage import snapshot
from shoal.vocabulary import Contributor, Weighted

from .stores import randoms, table

SHARES = (0.3, 0.1, 0.2, 0.4)
SHAPES = ((300, 301), (70_001,), (4096, 20), (7, 3), (), (16,))  # whole rows and lines, and the rest of some


def stage(store: Store, who: Contributor, tensors: list[torch.Tensor]) -> None:
    blocks = store.table.blocks
    for block, view in zip(blocks, store.stage(who, [block.index for block in blocks]), strict=True):
        view[:] = tensors[block.tensor].reshape(-1)[block.start : block.stop].view(torch.uint8).numpy().data
    store.delivered(who, [block.index for block in blocks])


def sums(dtype: str, count: int, large: bool, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Of so many contributions, the last of which is another one's and lacks nothing."""
    monkeypatch.setattr(module, "LARGE_ELEMENTS", 0 if large else 1 << 40)
    store = Store(snapshot, threads=2, shared=True)
    store.run(k.CreateTable(table([SGD(lr=0.1)], SHAPES, dtype), 0, 1, replicated=True))
    who = [Contributor(worker, 1, 1, 0) for worker in range(count)]
    for worker, contributor in enumerate(who):
        stage(store, contributor, randoms(10 + worker, dtype, SHAPES))
    for total in store.sums.own:
        total.fill(np.nan)  # what lay there before has no part in it
    weighted = tuple(Weighted(contributor, share) for contributor, share in zip(who, SHARES, strict=False))
    store.run(k.Combine(weighted, held=True))
    assert len(store.sums.held.delivered) == len(store.table.blocks)
    return [total.tobytes() for total in store.sums.own]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_bits_past_the_caches(dtype: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    plain = module._write
    monkeypatch.setattr(module, "_write", lambda *given: (written.append(given[1].size), plain(*given))[1])
    ordinary = sums(dtype, count, False, monkeypatch)
    assert not written
    assert sums(dtype, count, True, monkeypatch) == ordinary
    assert 90_300 - 80_000 in written and 70_001 in written


def test_memory_that_lies_across_lines_is_written_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_ELEMENTS", 0)
    store = Store(snapshot)
    store.run(k.CreateTable(table([SGD(lr=0.1)], ((1000,),)), 0, 1))
    memory = np.full(1024, np.nan, np.float32)
    first = next(start for start in range(1, 17) if memory[start:].__array_interface__["data"][0] % 64)
    sum_of = module.Combined.of(store.table, [memory[first : first + 1000]])
    sum_of.contributors = (Weighted(Contributor(0, 1, 1, 0), 0.5),)
    values = np.frombuffer(os.urandom(1000), np.uint8).astype(np.float32)
    sum_of.add(store.table, 0, [(values, np.float32(0.5))], np.zeros(16, np.float32))
    assert (sum_of.sums[0] == values / 2).all() and sum_of.filled == [True]
