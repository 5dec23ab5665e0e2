"""A small GPT: token and position embeddings, pre-norm blocks, and a head.

The architecture and its initial values are GPT-2's (Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners", section 2.3), with the options that nanoGPT made familiar. Two models built after the same
`torch.manual_seed` are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """What decides the size of the model.

    bias: whether Linear and LayerNorm have one. tie_weights: whether the head is the token embedding (Press and
    Wolf 2017, arXiv 1608.05859), which saves vocab_size * n_embd parameters.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = False
    tie_weights: bool = False


class GPT(nn.Module):
    """`model(ids)` gives logits; `model(ids, targets)` gives the loss.

    ids, targets: (batch, time) int64 with time <= block_size. logits: (batch, time, vocab_size).
    loss: mean cross entropy in nats, a scalar.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.positions = nn.Embedding(shape.block_size, shape.n_embd)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = nn.LayerNorm(shape.n_embd, bias=shape.bias)
        self.head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        if shape.tie_weights:
            self.head.weight = self.tokens.weight
        self._initialise()

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        time = ids.shape[1]
        if time > self.shape.block_size:
            raise ValueError(
                f"a sequence of {time} tokens does not fit a model with block_size {self.shape.block_size}"
            )
        positions = torch.arange(time, device=ids.device)
        hidden = self.dropout(self.tokens(ids) + self.positions(positions))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        if targets is None:
            return logits
        loss: Tensor = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        count: int,
        *,
        temperature: float = 0.8,
        top_k: int | None = 200,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`ids` (batch, time) followed by `count` sampled tokens: (batch, time + count).

        temperature 0 takes the likeliest token each time; top_k keeps the likeliest k to choose from.
        """
        training = self.training
        self.eval()
        for _ in range(count):
            logits = self(ids[:, -self.shape.block_size :])[:, -1, :]
            ids = torch.cat((ids, _choose(logits, temperature, top_k, generator)), dim=1)
        self.train(training)
        return ids

    def decayed(self, weight_decay: float) -> list[dict[str, object]]:
        """Parameter groups, by name: matrices and embeddings decay, gains and biases do not."""
        named = list(self.named_parameters())
        return [
            {"params": [item for item in named if item[1].dim() >= 2], "weight_decay": weight_decay},
            {"params": [item for item in named if item[1].dim() < 2], "weight_decay": 0.0},
        ]

    def _initialise(self) -> None:
        """Normal(0, 0.02); what writes into the residual stream is scaled down by sqrt(2 n_layer)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith("project.weight")
                scale = 1 / math.sqrt(2 * self.shape.n_layer) if residual else 1.0
                nn.init.normal_(parameter, std=INITIAL_DEVIATION * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(shape.n_embd, bias=shape.bias)
        self.attention = Attention(shape)
        self.norm_mlp = nn.LayerNorm(shape.n_embd, bias=shape.bias)
        self.mlp = Mlp(shape)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.norm_attention(hidden))
        mixed: Tensor = hidden + self.mlp(self.norm_mlp(hidden))
        return mixed


class Attention(nn.Module):
    """Causal self-attention with n_head heads. (batch, time, n_embd) to the same shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.n_head
        self.rate = shape.dropout
        self.expand = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=shape.bias)
        self.project = nn.Linear(shape.n_embd, shape.n_embd, bias=shape.bias)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, time, width = hidden.shape
        query, key, value = (
            part.view(batch, time, self.heads, width // self.heads).transpose(1, 2)  # (batch, head, time, width/head)
            for part in self.expand(hidden).split(width, dim=2)
        )
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        projected: Tensor = self.dropout(self.project(mixed.transpose(1, 2).reshape(batch, time, width)))
        return projected


class Mlp(nn.Module):
    """Two linear maps, four times as wide in between, with a GELU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.expand = nn.Linear(shape.n_embd, 4 * shape.n_embd, bias=shape.bias)
        self.project = nn.Linear(4 * shape.n_embd, shape.n_embd, bias=shape.bias)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.dropout(self.project(F.gelu(self.expand(hidden))))
        return projected


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token per row of logits (batch, vocab_size): (batch, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
