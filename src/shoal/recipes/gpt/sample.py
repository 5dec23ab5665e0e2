"""Text from a trained model: the same model, prompt and seed write the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from shoal.errors import SnapshotError
from shoal.recipes.gpt.folder import Folder
from shoal.recipes.gpt.model import GPT, Shape
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import Tokenizer
from shoal.storage.snapshot import read_parameters


def build(settings: Settings, vocab_size: int) -> GPT:
    """The model of a run, with initial values drawn from torch's generator."""
    return GPT(
        Shape(
            vocab_size=vocab_size,
            block_size=settings.block_size,
            n_layer=settings.n_layer,
            n_head=settings.n_head,
            n_embd=settings.n_embd,
            dropout=settings.dropout,
            bias=settings.bias,
            tie_weights=settings.tie_weights,
        )
    )


def load(folder: Folder, snapshot: Path | None = None) -> tuple[GPT, Tokenizer]:
    """The trained model of a run, or the model as a snapshot of it holds it, and its tokeniser.

    Raises SnapshotError if it cannot be read; also where the run has not ended, if no snapshot is named.
    """
    tokenizer = folder.tokenizer()
    model = build(folder.settings(), tokenizer.size)
    if snapshot is not None:
        _fill(model, snapshot)
        return model, tokenizer
    if not folder.model.exists():
        raise SnapshotError(f"{folder.path} holds no trained model: the run has not ended; {folder.way_on()}")
    try:
        load_model(model, str(folder.model))
    except (SafetensorError, RuntimeError) as error:
        raise SnapshotError(f"{folder.model} does not hold the model of {folder.path}: {error}") from None
    return model, tokenizer


def _fill(model: GPT, snapshot: Path) -> None:
    """Give the model the parameters of a snapshot."""
    held = read_parameters(snapshot)
    for name, parameter in model.named_parameters():
        if name not in held or held[name].shape != tuple(parameter.shape):
            raise SnapshotError(f"{snapshot} does not hold {name!r} of the model that {snapshot.parent} describes")
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(held[name]))


def write(
    model: GPT,
    tokenizer: Tokenizer,
    tokens: int,
    *,
    prompt: str = "",
    temperature: float = 0.8,
    top_k: int = 200,
    seed: int = 1337,
) -> str:
    """The prompt and `tokens` tokens of new text after it (ConfigurationError for a character the model never saw)."""
    ids = tokenizer.encode(prompt) if prompt else np.array([tokenizer.start])
    generator = torch.Generator().manual_seed(seed)
    start = torch.from_numpy(ids)[None]
    written = model.generate(start, tokens, temperature=temperature, top_k=top_k, generator=generator)
    return tokenizer.decode(written[0, 0 if prompt else 1 :].tolist())
