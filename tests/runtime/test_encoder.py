"""Error feedback: what a codec loses of a gradient is in the next one, whatever becomes of the step."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.codec.codec import push_codec
from shoal.core.shared import lay_out_shared
from shoal.kernel import Floats
from shoal.optim import SGD
from shoal.placement import cut
from shoal.runtime.encoder import Encoder
from shoal.vocabulary import PolicySpec, TableSpec, TensorSpec

RULE = SGD(lr=0.1)
ELEMENTS = 1000  # several blocks, the last one short
PUSHES = ("2bit", "sign", "int8", "bfloat16", "", "topk", "randomk")
SPEC = TableSpec(
    tuple(TensorSpec(push or "plain", (ELEMENTS,), "float32", 0, push) for push in PUSHES),
    RULE.name,
    (RULE.settings,),
    PolicySpec("sync"),
    block_elements_max=300,
)
TWO_BITS, SIGN, INT8, BFLOAT16, PLAIN, TOP, RANDOM = range(7)


def gradient(seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(ELEMENTS).astype(np.float32)


def push(encoder: Encoder, tensor: int, values: Floats, clock: int = 1) -> Floats:
    """What the servers make of it."""
    encoder.encode(tensor, values.view(np.uint8), worker=0, clock=clock)
    found = np.empty(ELEMENTS, np.float32)
    for block in cut(SPEC):
        if block.tensor == tensor:
            codec = push_codec(SPEC.tensors[tensor])
            encoded = np.frombuffer(encoder.block(block.index), codec.item)
            codec.first(found[block.start : block.stop], encoded, np.float32(1))
    return found


def end(encoder: Encoder, committed: bool = True, clock: int = 1) -> None:
    """The end of the step of this clock."""
    encoder.seal(0, clock)
    encoder.end(committed)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(SPEC, None)


@pytest.mark.parametrize(("tensor", "gap_max"), [(TWO_BITS, 4), (SIGN, 4), (TOP, 30), (RANDOM, 30)])
def test_what_was_sent_adds_up_to_what_was_meant(encoder: Encoder, tensor: int, gap_max: float) -> None:
    meant, sent = np.zeros(ELEMENTS), np.zeros(ELEMENTS)
    gaps = []
    for clock in range(1, 400):
        values = gradient(clock)
        meant += values
        sent += push(encoder, tensor, values, clock)
        end(encoder)
        gaps.append(np.abs(meant - sent).mean())
    assert max(gaps) < gap_max and np.mean(gaps[300:]) < 1.3 * np.mean(gaps[200:300]), "the residual does not grow"


def test_a_contribution_that_no_commit_took_is_in_the_next(encoder: Encoder) -> None:
    one, two = gradient(1), gradient(2)
    push(encoder, TWO_BITS, one)
    end(encoder, committed=False)
    other = Encoder(SPEC, None)
    np.testing.assert_allclose(push(encoder, TWO_BITS, two, 2), push(other, TWO_BITS, one + two, 2), atol=1e-5)


def test_a_step_that_was_taken_back_never_was(encoder: Encoder) -> None:
    push(encoder, SIGN, gradient(1))
    end(encoder)
    first = push(encoder, SIGN, gradient(2), 2)
    encoder.restart()
    push(encoder, SIGN, gradient(7), 2)
    encoder.restart()
    np.testing.assert_array_equal(push(encoder, SIGN, gradient(2), 2), first)


def test_residuals_follow_the_scale_of_gradients(encoder: Encoder) -> None:
    """As GradScaler halves its scale: gradients are half as large, and count twice."""
    other = Encoder(SPEC, None)
    for item in (encoder, other):
        push(item, TWO_BITS, gradient(1))
        end(item)
    push(encoder, TWO_BITS, gradient(2) / 2, 2)
    assert encoder.rescale(2.0) and not encoder.rescale(2.0)
    encoder.restart()
    expected = push(other, TWO_BITS, gradient(2), 2)
    np.testing.assert_allclose(2 * push(encoder, TWO_BITS, gradient(2) / 2, 2), expected, rtol=1e-5)


def test_what_loses_little_has_no_residual(encoder: Encoder) -> None:
    for tensor in (INT8, BFLOAT16, PLAIN):
        first = push(encoder, tensor, gradient(1))
        end(encoder)
        np.testing.assert_array_equal(push(encoder, tensor, gradient(1)), first)
    np.testing.assert_array_equal(first, gradient(1))


def test_servers_on_this_host_read_it_where_it_is_encoded() -> None:
    layout = lay_out_shared(SPEC, 1)
    assert layout is not None
    memory = memoryview(bytearray(layout.pushed_bytes))
    encoder, own = Encoder(SPEC, memory), Encoder(SPEC, None)
    for tensor in range(len(SPEC.tensors)):
        np.testing.assert_array_equal(push(encoder, tensor, gradient(3)), push(own, tensor, gradient(3)))
    for block in cut(SPEC):
        assert memory[layout.pushed[block.index]] == own.block(block.index)


@pytest.mark.parametrize("tensor", range(len(PUSHES)), ids=[push or "plain" for push in PUSHES])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_it_tells_what_is_not_finite_and_which_blocks_are_done(encoder: Encoder, tensor: int, value: float) -> None:
    values, done = gradient(1), list[int]()
    assert encoder.encode(tensor, values.view(np.uint8), 0, 1, done.append)
    assert done == [block.index for block in cut(SPEC) if block.tensor == tensor]
    values[ELEMENTS - 1] = value
    encoder.restart()
    assert not encoder.encode(tensor, values.view(np.uint8), 0, 1)
