"""A fused pass gives the bits of its steps done one after the other, for every rule, format and number of workers."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pytest

from shoal.codec.codec import CODECS, Codec
from shoal.kernel import specialised
from shoal.optim import LAMB, SGD, Adagrad, Adam, AdamW, DelayedNesterov, Lion, RMSprop, Rule
from shoal.optim.passes import LANES, fused

ELEMENTS = 5 * LANES + 7
SCRATCH = np.zeros(2 * LANES, np.float32)  # three pieces, the last one short

RULES: list[Rule] = [
    SGD(lr=0.1, weight_decay=0.1),
    SGD(lr=0.1, momentum=0.9, dampening=0.3),
    SGD(lr=0.1, momentum=0.9, nesterov=True),
    Adagrad(lr=0.1, initial_accumulator_value=0.2, weight_decay=0.1),
    RMSprop(weight_decay=0.1),
    RMSprop(momentum=0.9),
    RMSprop(centered=True),
    RMSprop(centered=True, momentum=0.8),
    Adam(weight_decay=0.1),
    AdamW(lr=0.1),
    LAMB(lr=0.1),
    Lion(lr=0.1, weight_decay=0.1),
    DelayedNesterov(every=2, share=0.25),
]


CASES = [  # float32 for all rules and AdamW in all formats; the others compile for too long to be quick
    pytest.param(rule, name, marks=() if name == "float32" or isinstance(rule, AdamW) else pytest.mark.slow)
    for rule in RULES
    for name in CODECS
]


@dataclass
class Block:
    """A block's arrays, and what `workers` workers sent for it."""

    rule: Rule
    codec: Codec
    workers: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.workers)
        self.parameters = rng.standard_normal(ELEMENTS).astype(np.float32)
        self.states = [rng.random(ELEMENTS, np.float32) for _ in self.rule.states]
        self.states[:1] = [
            state + np.float32(1) for state in self.states[:1]
        ]  # centered: the mean of squares is larger
        spread = np.float32(10) ** rng.integers(-4, 3, (self.workers, ELEMENTS)).astype(np.float32)
        sent = [self.encode(rng.standard_normal(ELEMENTS).astype(np.float32) * row) for row in spread]
        weights = rng.dirichlet(np.ones(self.workers)).astype(np.float32)
        self.contributions = list(zip(sent, weights, strict=True))

    def encode(self, values: np.ndarray) -> np.ndarray:
        encoded = np.empty(ELEMENTS, self.codec.item)
        self.codec.encode(encoded, values)
        return encoded

    def gradient(self) -> np.ndarray:
        """decode, weigh, add in worker order; numpy rounds each step to float32."""
        total = None
        for encoded, weight in self.contributions:
            part = weight * decode(encoded, self.codec.name)
            total = part if total is None else total + part
        assert total is not None and total.dtype == np.float32
        return total


def decode(encoded: np.ndarray, name: str) -> np.ndarray:
    match name:
        case "float16":
            return encoded.view(np.float16).astype(np.float32)
        case "bfloat16":
            return (encoded.astype(np.uint32) << np.uint32(16)).view(np.float32)
        case _:
            return encoded


@pytest.mark.parametrize(("rule", "name"), CASES, ids=repr)
def test_bits_are_those_of_one_step_after_the_other(rule: Rule, name: str) -> None:
    codec = CODECS[name]
    for workers in range(1, 6):
        for factor in np.float32([1, 0.37]):
            block = Block(rule, codec, workers)
            published = np.empty(ELEMENTS, codec.item)
            for step in (1, 2):
                constants, gradient = rule.constants(step, 0.01), block.gradient()
                gradient = gradient if factor == 1 else gradient * factor
                wanted, states = rule.formula(block.parameters, gradient, tuple(block.states), constants)
                fused(rule, codec).update(
                    block.parameters, block.states, constants, block.contributions, factor, SCRATCH, published
                )
                assert np.isfinite(wanted).all()
                assert block.parameters.tobytes() == wanted.tobytes()
                assert [state.tobytes() for state in block.states] == [state.tobytes() for state in states]
                assert published.tobytes() == block.encode(block.parameters).tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_publishing_changes_no_bit(name: str) -> None:
    one, other = Block(AdamW(), CODECS[name], 2), Block(AdamW(), CODECS[name], 2)
    for block, published in ((one, None), (other, np.empty(ELEMENTS, CODECS[name].item))):
        constants = block.rule.constants(1, 0.1)
        fused(block.rule, block.codec).update(
            block.parameters, block.states, constants, block.contributions, np.float32(1), SCRATCH, published
        )
    assert one.parameters.tobytes() == other.parameters.tobytes()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("workers", range(1, 6))
def test_squares_are_of_the_combined_gradient(name: str, workers: int) -> None:
    block = Block(SGD(), CODECS[name], workers)
    found = fused(block.rule, block.codec).squares(block.contributions, SCRATCH)
    assert found == pytest.approx(math.fsum(block.gradient().astype(np.float64) ** 2), rel=1e-13)
    assert found == fused(block.rule, block.codec).squares(block.contributions, np.zeros(64 * LANES, np.float32))


@pytest.mark.parametrize("workers", range(1, 6))
def test_trust_is_measured_before_the_update(workers: int) -> None:
    block = Block(LAMB(), CODECS["float32"], workers)
    constants, factor = block.rule.constants(3, 0.1), np.float32(0.37)
    before = block.parameters.tobytes(), [state.tobytes() for state in block.states]
    assert block.rule.direction is not None
    updates, _ = block.rule.direction(block.parameters, block.gradient() * factor, tuple(block.states), constants)
    passes = fused(block.rule, block.codec)
    for scratch in (SCRATCH, np.zeros(64 * LANES, np.float32)):
        found = passes.trust(block.parameters, block.states, constants, block.contributions, factor, scratch)
        wanted = [math.fsum(values.astype(np.float64) ** 2) for values in (block.parameters, updates)]
        assert found == pytest.approx(wanted, rel=1e-13)
    assert before == (block.parameters.tobytes(), [state.tobytes() for state in block.states])


def test_what_is_not_finite_shows() -> None:
    for value in (math.nan, math.inf):
        block = Block(AdamW(), CODECS["float32"], 2)
        block.contributions[1][0][300] = value
        passes = fused(block.rule, block.codec)
        assert not math.isfinite(passes.squares(block.contributions, SCRATCH))
        constants = block.rule.constants(1, 0.1)
        passes.update(block.parameters, block.states, constants, block.contributions, np.float32(1), SCRATCH)
        assert np.flatnonzero(~np.isfinite(block.parameters)).tolist() == [300]


def test_rules_of_one_formula_share_their_kernels() -> None:
    one = fused(AdamW(lr=0.1), CODECS["float32"])
    assert fused(Adam(weight_decay=0.3), CODECS["float32"]) is one
    assert fused(AdamW(lr=0.1), CODECS["bfloat16"]) is not one
    assert fused(SGD(), CODECS["float32"]) is not fused(SGD(momentum=0.9), CODECS["float32"])


def test_an_edited_formula_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba looks at the loop's file only, so what is kept on disk must also be named after the formula's."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for term in ("1", "1", "20"):
        (tmp_path / "edited_formula.py").write_text(
            f"from shoal.kernel import element\n\n@element\ndef add(x):\n    return x + {term}\n"
        )
        sys.modules.pop("edited_formula", None)
        importlib.invalidate_caches()
        add = importlib.import_module("edited_formula").add

        def loop(values: np.ndarray) -> None:
            for i in range(values.size):
                values[i] = add(values[i])  # noqa: B023 - compiled before the next turn

        values = np.zeros(3)
        compiled = specialised(loop)
        compiled(values)
        found.append((values.tolist(), len(compiled.stats.cache_hits)))
    assert found == [([1.0] * 3, 0), ([1.0] * 3, 1), ([20.0] * 3, 0)]
    sys.modules.pop("edited_formula", None)


WARM = """
import numba.core.dispatcher as dispatcher
hits = misses = 0
load = dispatcher.FunctionCache.load_overload
def counted(cache, signature, context):
    global hits, misses
    found = load(cache, signature, context)
    hits, misses = hits + (found is not None), misses + (found is None)
    return found
dispatcher.FunctionCache.load_overload = counted
from shoal.codec.codec import codec_for
from shoal.optim import LAMB
from shoal.optim.passes import fused
rule, codec = LAMB(), codec_for("bfloat16")
codec.warm()
fused(rule, codec).warm(rule.constants(1, 0.1), squares=True, published=True)
print(hits, misses)
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", WARM], env=environment, capture_output=True, text=True, timeout=100, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [["0", "12"], ["12", "0"]]  # first, add, encode; update, squares and trust in three forms
