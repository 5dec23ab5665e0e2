"""Samples and evaluation: a sample is the same crop everywhere; a loss is the same at every call."""

import numpy as np
import pytest
import torch

from shoal.recipes.gpt import evaluate
from shoal.recipes.gpt.crops import Crops
from shoal.recipes.gpt.model import GPT, Shape

IDS = np.arange(1000)


def test_targets_are_one_ahead_and_batches_equal_single_samples() -> None:
    crops = Crops(IDS, 8, 100, seed=3)
    x, y = crops.batch(np.array([4, 99, 0]))
    assert x.shape == y.shape == (3, 8) and torch.equal(x + 1, y)
    for row, (alone_x, alone_y) in enumerate(crops.__getitems__([4, 99, 0])):
        assert torch.equal(alone_x, x[row]) and torch.equal(alone_y, y[row])
    assert torch.equal(crops[99][0], x[1])


def test_a_crop_depends_on_seed_and_number_alone() -> None:
    numbers = np.arange(100)
    places = Crops(IDS, 8, 100, seed=3).places(numbers)
    assert np.array_equal(places, Crops(IDS, 8, 500, seed=3).places(numbers))
    assert not np.array_equal(places, Crops(IDS, 8, 100, seed=4).places(numbers))
    assert np.array_equal(places[40:], Crops(IDS, 8, 60, seed=3, first=40).places(numbers[:60]))


def test_crops_cover_the_text_evenly_to_both_ends() -> None:
    places = Crops(IDS, 8, 100_000, seed=0).places(np.arange(100_000))
    assert places.min() == 0 and places.max() == 1000 - 8 - 1
    counts = np.bincount(places, minlength=992)
    assert len(counts) == 992
    assert abs(counts - 100_000 / 992).max() < 6 * (100_000 / 992) ** 0.5  # Poisson, six sigma


@pytest.mark.parametrize("index", [-1, 100])
def test_a_sample_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match="outside the 100 samples"):
        Crops(IDS, 8, 100, seed=0)[index]


def test_measure_takes_every_window_once() -> None:
    torch.manual_seed(0)
    model, ids = GPT(Shape(10, 4, 1, 1, 8)), np.arange(103) % 10
    windows = [torch.from_numpy(ids[start : start + 5]) for start in range(0, 100, 4)]  # 25; the last token is spare
    expected = sum(model(item[None, :-1], item[None, 1:]).item() for item in windows) / len(windows)
    assert evaluate.measure(model, ids) == pytest.approx(expected, abs=1e-6)


def test_evaluation_is_repeatable_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model, ids = GPT(Shape(10, 4, 1, 1, 8, dropout=0.5)), np.arange(100) % 10
    before = {name: item.clone() for name, item in model.state_dict().items()}
    first = evaluate.estimate(model, ids, crops=20, seed=1)
    assert first == evaluate.estimate(model, ids, crops=20, seed=1)
    assert evaluate.measure(model, ids) == evaluate.measure(model, ids)
    assert model.training and all(torch.equal(item, before[name]) for name, item in model.state_dict().items())
