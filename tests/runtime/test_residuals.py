"""What codecs lost survives its process, whenever that is killed; and snapshots get it as it was at their clock."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from shoal.client import connect
from shoal.kernel import Floats
from shoal.optim import SGD
from shoal.runtime.encoder import Encoder
from shoal.vocabulary import PolicySpec, TableSpec, TensorSpec
from shoal.wire.forming import NOTHING

from .test_encoder import RULE, SIGN, SPEC, TWO_BITS, gradient, push

FED = (TWO_BITS, SIGN)


@pytest.fixture
def estate() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


def life(estate: int | None, used: tuple[int, int] = NOTHING) -> Encoder:
    encoder = Encoder(SPEC, None, estate)
    encoder.adopt(used)
    return encoder


def step(encoder: Encoder, clock: int, committed: bool = True, incarnation: int = 0) -> None:
    for tensor in FED:
        push(encoder, tensor, gradient(10 * clock + tensor), clock)
    encoder.seal(incarnation, clock)
    encoder.end(committed)


def owed(encoder: Encoder, used: tuple[int, int]) -> bytes:
    """All that was lost up to this contribution."""
    pinned = encoder.pin(used)
    return b"" if pinned is None else joined(encoder.take(pinned))


def joined(found: dict[str, Floats]) -> bytes:
    return b"".join(found[name].tobytes() for name in sorted(found))


def left(estate: int, used: tuple[int, int]) -> bytes:
    """What the next life has, if the log took this contribution last."""
    return owed(life(estate, used), used)


@pytest.mark.parametrize("pushed", [0, 1, 2])
def test_killed_before_all_is_encoded_it_leaves_what_was_before(estate: int, pushed: int) -> None:
    one = life(estate)
    step(one, 1)
    step(one, 2)
    before = owed(one, (0, 2))
    for tensor in FED[:pushed]:
        push(one, tensor, gradient(99), 3)
    assert left(estate, (0, 2)) == before != b""


def test_killed_when_all_is_encoded_the_log_decides(estate: int) -> None:
    one = life(estate)
    step(one, 1)
    before = owed(one, (0, 1))
    for tensor in FED:
        push(one, tensor, gradient(99), 2)
    one.seal(0, 2)
    assert left(estate, (0, 1)) == before, "it came too late: the next life begins without it"
    one.end(committed=True)
    after = owed(one, (0, 2))
    assert after != before and left(estate, (0, 2)) == after


def test_what_no_commit_took_is_left_to_the_next_life(estate: int) -> None:
    one = life(estate)
    step(one, 1)
    before = owed(one, (0, 1))
    step(one, 2, committed=False)
    assert left(estate, (0, 1)) == owed(one, (0, 1)) != before


def test_the_next_life_but_one_finds_it_too(estate: int) -> None:
    step(life(estate), 1)
    second = life(estate, used=(0, 1))
    before = owed(second, (0, 1))
    push(second, TWO_BITS, gradient(5), 2)  # and is killed
    third = life(estate, used=(0, 1))
    assert owed(third, (0, 1)) == before != b""
    step(third, 2, incarnation=2)
    assert left(estate, (2, 2)) == owed(third, (2, 2)) != before


@pytest.mark.parametrize("used", [NOTHING, (0, 7), (3, 2)])
def test_what_does_not_fit_the_log_is_not_taken(estate: int, used: tuple[int, int]) -> None:
    one = life(estate)
    step(one, 1)
    step(one, 2)
    assert left(estate, used) == b""


def test_memory_of_another_table_is_not_taken(estate: int) -> None:
    step(life(estate), 1)
    spec = TableSpec((TensorSpec("other", (7,), "float32", 0, "sign"),), "sgd", (RULE.settings,), PolicySpec("sync"))
    other = Encoder(spec, None, estate)
    assert not other.adopt((0, 1))


def test_a_tensor_without_a_gradient_keeps_what_it_is_owed() -> None:
    encoder = life(None)
    step(encoder, 1)
    push(encoder, SIGN, gradient(1), 2)
    before = owed(encoder, (0, 1))
    encoder.seal(0, 2)
    encoder.end(committed=True)
    after = owed(encoder, (0, 2))
    two_bits = slice(0, len(after) // 4)  # the names in order: 2bit, randomk, sign, topk
    assert after[two_bits] == before[two_bits] and after != before


# --- snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_has_it_as_it_was_whatever_follows() -> None:
    encoder = life(None)
    step(encoder, 1)
    before, pinned = owed(encoder, (0, 1)), encoder.pin((0, 1))
    assert pinned is not None
    step(encoder, 2)
    waits = threading.Thread(target=step, args=(encoder, 3), daemon=True)
    waits.start()
    waits.join(0.2)
    assert waits.is_alive(), "what was asked for may not be written over"
    found = encoder.take(pinned)
    waits.join(10.0)
    assert not waits.is_alive()
    assert joined(found) == before


def test_a_snapshot_has_what_is_in_the_log_before_its_thread_knows() -> None:
    encoder = life(None)
    step(encoder, 1)
    for tensor in FED:
        push(encoder, tensor, gradient(3), 2)
    assert encoder.pin((0, 2)) is None, "it is not whole"
    encoder.seal(0, 2)
    before, after = owed(encoder, (0, 1)), owed(encoder, (0, 2))
    assert before != after != b""
    encoder.end(committed=True)
    assert owed(encoder, (0, 2)) == after


def test_a_snapshot_that_asks_too_late_gets_nothing() -> None:
    encoder = life(None)
    for clock in (1, 2, 3):
        step(encoder, clock)
    assert encoder.pin((0, 1)) is None


def test_what_came_from_a_snapshot_is_in_the_next_one() -> None:
    first, second = life(None), life(None)
    step(first, 1)
    pinned = first.pin((0, 1))
    assert pinned is not None
    second.load(first.take(pinned))
    assert owed(second, NOTHING) == owed(first, (0, 1)) != b""


def test_a_gradient_that_is_skipped_leaves_nothing_behind() -> None:
    with connect() as ps:
        model = nn.Linear(4, 1)
        optimizer = ps.optimizer(model, SGD(lr=0.1), nonfinite="skip", push="2bit")
        for factor in (1.0, np.nan, 1.0):
            (model(torch.ones(1, 4)).sum() * factor).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
