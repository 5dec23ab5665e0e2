"""The model: causal, initialised as GPT-2 is, and able to learn."""

import math

import pytest
import torch
from torch.nn import functional as F

from shoal.recipes.gpt.model import GPT, Shape

SHAPE = Shape(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_a_later_token_changes_no_earlier_logits() -> None:
    model, ids = GPT(SHAPE), torch.randint(11, (3, 8))
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_the_loss_is_the_mean_cross_entropy_of_the_logits() -> None:
    model, ids, targets = GPT(SHAPE), torch.randint(11, (3, 8)), torch.randint(11, (3, 8))
    expected = F.cross_entropy(model(ids).reshape(24, 11), targets.reshape(24))
    assert torch.allclose(model(ids, targets), expected)
    assert model(ids, targets).item() == pytest.approx(math.log(11), abs=0.1)  # an untrained model knows nothing


def test_initial_values_are_those_of_gpt_2() -> None:
    model = GPT(Shape(vocab_size=65, block_size=64, n_layer=8, n_head=4, n_embd=128, bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith("project.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.05), name  # sqrt(2 * 8) = 4
        elif parameter.dim() >= 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name


def test_the_published_setting_has_the_published_size() -> None:
    shape = Shape(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, tie_weights=True)
    count = sum(item.numel() for item in GPT(shape).parameters())
    assert count - 64 * 128 == 795_904  # nanoGPT prints 0.80M, positions not counted


def test_tied_weights_are_one_parameter() -> None:
    names = {name for name, _ in GPT(Shape(11, 8, 2, 2, 16, tie_weights=True)).named_parameters()}
    assert "tokens.weight" in names and "head.weight" not in names


def test_only_matrices_decay() -> None:
    model = GPT(Shape(11, 8, 2, 2, 16, bias=True))
    decayed, plain = model.decayed(0.1)
    assert {item.dim() for _, item in decayed["params"]} == {2} and decayed["weight_decay"] == 0.1
    assert {item.dim() for _, item in plain["params"]} == {1} and plain["weight_decay"] == 0.0
    names = [name for group in (decayed, plain) for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_sequence_longer_than_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="9 tokens does not fit a model with block_size 8"):
        GPT(SHAPE)(torch.zeros(1, 9, dtype=torch.long))


def test_it_learns_a_pattern_and_writes_it() -> None:
    model = GPT(SHAPE)
    ids = (torch.arange(9) + torch.arange(3)[:, None]) % 3  # 0 1 2 0 1 2 ..., begun at each
    opt = torch.optim.AdamW(model.decayed(0.0), lr=1e-2)
    for _ in range(60):
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        opt.step()
        opt.zero_grad()
    assert loss.item() < 0.1
    written = model.generate(torch.tensor([[0]]), 20, temperature=0)
    assert written[0].tolist() == [index % 3 for index in range(21)]  # beyond block_size too
    assert model.generate(torch.tensor([[0]]), 20, top_k=1).tolist() == written.tolist()


def test_the_same_generator_writes_the_same() -> None:
    model, start = GPT(SHAPE), torch.tensor([[0]])
    first, second, other = (
        model.generate(start, 30, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == second != other
    assert model.training


def test_dropout_acts_in_training_only() -> None:
    model, ids = GPT(Shape(11, 8, 2, 2, 16, dropout=0.5)), torch.randint(11, (2, 8))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
