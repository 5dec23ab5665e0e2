"""Losses of a model on text: the same model and text give the same figure."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from shoal.recipes.gpt.crops import Crops
from shoal.recipes.gpt.model import GPT
from shoal.recipes.gpt.text import Ids

WINDOWS_MAX = 2048
WINDOWS_AT_ONCE = 32  # 32 * block_size tokens of logits fit any machine


def estimate(model: GPT, ids: Ids, *, crops: int, seed: int) -> float:
    """Mean loss, in nats per token, over random crops, the same ones at every call with this seed."""
    return _mean(model, Crops(ids, model.shape.block_size, crops, seed=seed).rows(np.arange(crops)))


def measure(model: GPT, ids: Ids) -> float:
    """Mean loss over all of `ids` in windows side by side, or over WINDOWS_MAX of them, evenly spread."""
    block = model.shape.block_size
    count = (len(ids) - 1) // block
    chosen = torch.linspace(0, count - 1, min(count, WINDOWS_MAX), dtype=torch.float64).long()
    return _mean(model, torch.from_numpy(ids).unfold(0, block + 1, block)[chosen])


@torch.no_grad()
def _mean(model: GPT, rows: Tensor) -> float:
    """rows: (windows, block_size + 1) int64."""
    training = model.training
    model.eval()
    parts = torch.split(rows, WINDOWS_AT_ONCE)
    total = math.fsum(model(part[:, :-1], part[:, 1:]).item() * len(part) for part in parts)
    model.train(training)
    return total / len(rows)
