"""The tensors of a GPT of about the size asked for: few large ones, many small ones, as models have.

GPT-2's parameters with tied embeddings: token and position embeddings, and per layer two layer norms,
attention (qkv and projection) and an MLP four times as wide, each with its bias. What is too small for that
is an embedding and one linear layer: a model that costs an exchange its fixed price and nothing else.
"""

from __future__ import annotations

import math

from shoal.errors import ConfigurationError

Shapes = tuple[tuple[str, tuple[int, ...]], ...]

PARAMS_MIN = 1_000
GPT_MIN = 5_000
CONTEXT = 64
MULTIPLE = 8  # of every width
LAYERS_SHARE = 0.7  # of the parameters; the rest are embeddings, as in GPT-2 small
LAYERS = ((3e6, 4), (3e7, 6), (3e8, 12), (math.inf, 24))  # up to how many parameters, how many layers

_SUFFIXES = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000, "B": 1_000_000_000}


def parse_params(text: str) -> int:
    """10M -> 10,000,000 (ConfigurationError for what is no such number, or below PARAMS_MIN)."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in _SUFFIXES else (text, "")
    try:
        params = round(float(number) * _SUFFIXES.get(unit, 1))
    except (ValueError, OverflowError):
        raise ConfigurationError(f"--params {text!r} is no number of parameters; write it like 10M") from None
    if params < PARAMS_MIN:
        raise ConfigurationError(f"--params {text} is too small; give at least {PARAMS_MIN}")
    return params


def gpt_shapes(params: int) -> Shapes:
    """Names and shapes of a GPT with `params` parameters, less at most one row of its embedding."""
    if params < GPT_MIN:
        return _tiny(params)
    layers, width = gpt_size(params)
    body = [item for layer in range(layers) for item in _layer(f"h.{layer}", width)]
    body += [("ln_f.weight", (width,)), ("ln_f.bias", (width,))]
    tokens = (params - elements(tuple(body))) // width - CONTEXT
    return (("wte.weight", (tokens, width)), ("wpe.weight", (CONTEXT, width)), *body)


def gpt_size(params: int) -> tuple[int, int]:
    """Layers and width of such a GPT."""
    layers = next(count for limit, count in LAYERS if params < limit)
    return layers, max(MULTIPLE, int(math.sqrt(LAYERS_SHARE * params / (12 * layers))) // MULTIPLE * MULTIPLE)


def elements(shapes: Shapes) -> int:
    """How many parameters these are."""
    return sum(math.prod(shape) for _, shape in shapes)


def _tiny(params: int) -> Shapes:
    rows = (params - MULTIPLE * (MULTIPLE + 1)) // MULTIPLE
    return (
        ("wte.weight", (rows, MULTIPLE)),
        ("head.weight", (MULTIPLE, MULTIPLE)),
        ("head.bias", (MULTIPLE,)),
    )


def _layer(name: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (f"{name}.ln_1.weight", (width,)),
        (f"{name}.ln_1.bias", (width,)),
        (f"{name}.attn.qkv.weight", (3 * width, width)),
        (f"{name}.attn.qkv.bias", (3 * width,)),
        (f"{name}.attn.proj.weight", (width, width)),
        (f"{name}.attn.proj.bias", (width,)),
        (f"{name}.ln_2.weight", (width,)),
        (f"{name}.ln_2.bias", (width,)),
        (f"{name}.mlp.fc.weight", (4 * width, width)),
        (f"{name}.mlp.fc.bias", (4 * width,)),
        (f"{name}.mlp.proj.weight", (width, 4 * width)),
        (f"{name}.mlp.proj.bias", (width,)),
    ]
