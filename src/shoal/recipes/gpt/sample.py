"""Text from a trained model: the same model, prompt and seed write the same text."""

from __future__ import annotations

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from shoal.errors import SnapshotError
from shoal.recipes.gpt.folder import Folder
from shoal.recipes.gpt.model import GPT, Shape
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import Tokenizer


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


def load(folder: Folder) -> tuple[GPT, Tokenizer]:
    """The trained model of a run and its tokeniser (SnapshotError if the run has not ended)."""
    tokenizer = folder.tokenizer()
    model = build(folder.settings(), tokenizer.size)
    if not folder.model.exists():
        raise SnapshotError(f"{folder.path} holds no trained model: the run has not ended; let it, or --resume it")
    try:
        load_model(model, str(folder.model))
    except (SafetensorError, RuntimeError) as error:
        raise SnapshotError(f"{folder.model} does not hold the model of {folder.path}: {error}") from None
    return model, tokenizer


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
