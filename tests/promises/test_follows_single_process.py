"""Sync with 4 workers follows a single process on the joined batch: a small GPT, 50 steps, clipping on."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from shoal.adapters.torch import optimizer
from shoal.optim import SGD, AdamW, Rule
from shoal.recipes.gpt.model import GPT, Shape

from .cluster import Setting, joined, running, together

WORKERS, STEPS, BATCH, CLIP = 4, 50, 8, 0.5
SHAPE = Shape(vocab_size=40, block_size=16, n_layer=2, n_head=2, n_embd=32, bias=True)
TEXT = torch.randint(0, 40, (4_000,), generator=torch.Generator().manual_seed(0)).sort().values.roll(7) * 7 % 40

RULES: dict[str, tuple[Rule, type[torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (SGD(lr=0.1, momentum=0.9, clip_norm=CLIP), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (
        AdamW(lr=1e-2, weight_decay=0.1, clip_norm=CLIP),
        torch.optim.AdamW,
        {"lr": 1e-2, "weight_decay": 0.1},
    ),
}

Run = tuple[list[float], list[Tensor]]  # the loss of every step on the joined batch, the parameters at the end


@cache
def batches() -> list[tuple[Tensor, Tensor]]:
    """Of each step: ids and targets, each (BATCH, time)."""
    random = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        starts = torch.randint(0, len(TEXT) - SHAPE.block_size - 1, (BATCH,), generator=random).tolist()
        rows = torch.stack([TEXT[start : start + SHAPE.block_size + 1] for start in starts])
        found.append((rows[:, :-1], rows[:, 1:]))
    return found


def model() -> GPT:
    torch.manual_seed(2)
    return GPT(SHAPE)


def parameters(gpt: GPT) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in gpt.parameters()]


@cache
def alone(rule: str) -> Run:
    """torch's own optimizer and clipping, one process, the joined batch; norms show that clipping bites."""
    _, kind, settings = RULES[rule]
    gpt, losses, clipped = model(), [], 0
    steps = kind(gpt.parameters(), **settings)  # type: ignore[call-arg]
    for ids, targets in batches():
        loss = gpt(ids, targets)
        loss.backward()
        clipped += float(torch.nn.utils.clip_grad_norm_(gpt.parameters(), CLIP)) > CLIP
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    assert clipped >= 10, "too few steps were clipped for this to be a test of clipping"
    return losses, parameters(gpt)


@cache
def spread(rule: str, scheme: str = "inproc", overlap: bool = False) -> Run:
    """Four workers on two servers, each with its quarter of the joined batch."""
    models = [model() for _ in range(WORKERS)]

    def work(rank: int) -> Run:
        losses = []
        with joined(embedded, rank) as worker:
            steps = optimizer(worker, models[rank], RULES[rule][0], overlap=overlap)
            quarter = slice(rank * BATCH // WORKERS, (rank + 1) * BATCH // WORKERS)
            for ids, targets in batches():
                loss = models[rank](ids[quarter], targets[quarter])
                loss.backward()
                steps.step()
                steps.zero_grad()
                losses.append(loss.item())
            steps.wait()
        return losses, parameters(models[rank])

    with running(WORKERS, Setting(servers=2, scheme=scheme)) as embedded:
        runs = together(*(lambda rank=rank: work(rank) for rank in range(WORKERS)))
    for _, final in runs:
        assert all(torch.equal(mine, first) for mine, first in zip(final, runs[0][1], strict=True))
    return [sum(losses) / WORKERS for losses in zip(*(run[0] for run in runs), strict=True)], runs[0][1]


def test_parameters_follow_with_sgd_and_momentum() -> None:
    (_, ours), (_, torchs) = spread("sgd"), alone("sgd")
    worst = max(float((mine - theirs).abs().max()) for mine, theirs in zip(ours, torchs, strict=True))
    assert worst < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_shared_memory_gives_the_same_bits(rule: str) -> None:
    (losses, ours), (expected, theirs) = spread(rule, "shm"), spread(rule)
    assert losses == expected
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("scheme", ["inproc", "tcp", "shm"])
def test_overlap_gives_the_same_bits(scheme: str) -> None:
    (losses, ours), (expected, theirs) = spread("adamw", scheme, overlap=True), spread("adamw")
    assert losses == expected
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_of_every_step_follows(rule: str) -> None:
    ours, torchs = torch.tensor(spread(rule)[0]), torch.tensor(alone(rule)[0])
    assert torchs[-1] < 0.7 * torchs[0], "it learns"
    assert float((ours - torchs).abs().max()) < 1e-3
