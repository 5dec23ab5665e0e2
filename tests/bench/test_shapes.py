"""The model that the exchange moves."""

from __future__ import annotations

import pytest

from shoal.bench.shapes import GPT_MIN, PARAMS_MIN, elements, gpt_shapes, parse_params
from shoal.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "params"), [("10M", 10_000_000), ("1.5m", 1_500_000), ("100K", 100_000), ("12345", 12_345)]
)
def test_sizes_are_read_as_people_write_them(text: str, params: int) -> None:
    assert parse_params(text) == params


@pytest.mark.parametrize("text", ["", "M", "ten", "nan", "infM", "-10M", "0", "999"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--params"):
        parse_params(text)


@pytest.mark.parametrize("params", [GPT_MIN, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000])
def test_the_model_is_a_gpt_of_the_size_asked_for(params: int) -> None:
    shapes = gpt_shapes(params)
    width = dict(shapes)["ln_f.bias"][0]
    assert params - width < elements(shapes) <= params
    assert all(side > 0 for _, shape in shapes for side in shape)
    assert len({name for name, _ in shapes}) == len(shapes)
    assert dict(shapes)["h.0.attn.qkv.weight"] == (3 * width, width)


@pytest.mark.parametrize("params", [PARAMS_MIN, GPT_MIN - 1])
def test_what_is_too_small_for_a_gpt_has_few_tensors(params: int) -> None:
    shapes = gpt_shapes(params)
    assert params - 8 < elements(shapes) <= params
    assert len(shapes) == 3
