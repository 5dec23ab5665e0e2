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


def life(estate: int | None, used: tuple[int, int] = NOTHING, clock: int = 1) -> Encoder:
    encoder = Encoder(SPEC, None, estate)
    encoder.adopt(used, clock)
    return encoder


def step(encoder: Encoder, clock: int, committed: bool = True, incarnation: int = 0) -> None:
    for tensor in FED:
        push(encoder, tensor, gradient(10 * clock + tensor), clock)
    encoder.seal(incarnation, clock)
    encoder.end(committed, clock + 1)


def owed(encoder: Encoder) -> bytes:
    """All that was lost so far, as the next contribution would have it."""
    encoder.keep(0, 0, here=True)
    found = encoder.take(0, 1.0)
    return b"" if found is None else b"".join(found[name].tobytes() for name in sorted(found))


@pytest.mark.parametrize("pushed", [0, 1, 2])
def test_killed_before_all_is_encoded_it_leaves_what_was_before(estate: int, pushed: int) -> None:
    one = life(estate)
    step(one, 1)
    step(one, 2)
    before = owed(one)
    for tensor in FED[:pushed]:
        push(one, tensor, gradient(99), 3)
    assert owed(life(estate, used=(0, 2), clock=3)) == before != b""


def test_killed_when_all_is_encoded_the_log_decides(estate: int) -> None:
    one = life(estate)
    step(one, 1)
    before = owed(one)
    for tensor in FED:
        push(one, tensor, gradient(99), 2)
    one.seal(0, 2)
    assert owed(life(estate, used=(0, 1), clock=2)) == before, "it came too late: the next life begins without it"
    one.end(committed=True, clock=3)
    after = owed(one)
    assert after != before and owed(life(estate, used=(0, 2), clock=3)) == after


def test_what_no_commit_took_is_left_to_the_next_life(estate: int) -> None:
    one = life(estate)
    step(one, 1)
    step(one, 2, committed=False)
    assert owed(life(estate, used=(0, 1), clock=3)) == owed(one)


def test_the_next_life_but_one_finds_it_too(estate: int) -> None:
    step(life(estate), 1)
    second = life(estate, used=(0, 1), clock=2)
    before = owed(second)
    push(second, TWO_BITS, gradient(5), 2)  # and is killed
    third = life(estate, used=(0, 1), clock=2)
    assert owed(third) == before != b""
    step(third, 2, incarnation=2)
    assert owed(life(estate, used=(2, 2), clock=3)) == owed(third)


@pytest.mark.parametrize("used", [NOTHING, (0, 7), (3, 2)])
def test_what_does_not_fit_the_log_is_not_taken(estate: int, used: tuple[int, int]) -> None:
    one = life(estate)
    step(one, 1)
    step(one, 2)
    assert owed(life(estate, used)) == b""


def test_memory_of_another_table_is_not_taken(estate: int) -> None:
    step(life(estate), 1)
    spec = TableSpec((TensorSpec("other", (7,), "float32", 0, "sign"),), "sgd", (RULE.settings,), PolicySpec("sync"))
    other = Encoder(spec, None, estate)
    assert not other.adopt((0, 1), 2)


def test_a_tensor_without_a_gradient_keeps_what_it_is_owed() -> None:
    encoder = life(None)
    step(encoder, 1)
    push(encoder, SIGN, gradient(1), 2)
    before = owed(encoder)
    encoder.seal(0, 2)
    encoder.end(committed=True, clock=3)
    after = owed(encoder)
    two_bits = slice(0, len(after) // 4)  # the names in order: 2bit, randomk, sign, topk
    assert after[two_bits] == before[two_bits] and after != before


# --- snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_of_this_clock_has_it_as_it_was_whatever_follows() -> None:
    encoder = life(None)
    step(encoder, 1)
    before = owed(encoder)
    encoder.keep(7, 2, here=True)
    step(encoder, 2)
    waits = threading.Thread(target=step, args=(encoder, 3), daemon=True)
    waits.start()
    waits.join(0.2)
    assert waits.is_alive(), "what was asked for may not be written over"
    found = encoder.take(7, 1.0)
    waits.join(10.0)
    assert not waits.is_alive()
    assert found is not None and b"".join(found[name].tobytes() for name in sorted(found)) == before


def test_a_snapshot_of_the_next_clock_waits_for_it() -> None:
    encoder = life(None)
    step(encoder, 1)
    for tensor in FED:
        push(encoder, tensor, gradient(3), 2)
    encoder.seal(0, 2)
    encoder.keep(7, 3, here=True)  # the session is there, the training thread has not seen the end of its step
    assert encoder.take(7, 0.01) is None
    encoder.keep(8, 3, here=True)
    encoder.end(committed=True, clock=3)
    assert encoder.take(8, 1.0) is not None


def test_a_snapshot_that_asks_too_late_gets_nothing() -> None:
    encoder = life(None)
    step(encoder, 1)
    step(encoder, 2)
    encoder.keep(7, 2, here=True)
    assert encoder.take(7, 1.0) is None


def test_who_trains_no_more_is_not_waited_for() -> None:
    encoder = life(None)
    encoder.keep(7, 5, here=False)
    encoder.close()
    assert encoder.take(7, 60.0) is None


def test_a_gradient_that_is_skipped_leaves_nothing_behind() -> None:
    with connect() as ps:
        model = nn.Linear(4, 1)
        optimizer = ps.optimizer(model, SGD(lr=0.1), nonfinite="skip", push="2bit")
        for factor in (1.0, np.nan, 1.0):
            (model(torch.ones(1, 4)).sum() * factor).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
