"""Random crops of a text as a dataset: sample i is the same crop in every process, for ever.

The ledger leases sample numbers, each to one worker, so that no crop is trained on twice or lost. That a crop's
place is a function of (seed, i) alone makes the training data of a run independent of how many workers share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from shoal.recipes.gpt.text import Ids


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """`size` crops of block_size tokens at random places; each is (x, y), both (block_size,) int64, y one ahead of x.

    first: the number of the first crop, so that a resumed run goes on where its data stopped.
    """

    def __init__(self, ids: Ids, block_size: int, size: int, *, seed: int, first: int = 0) -> None:
        if len(ids) <= block_size:
            raise ValueError(f"{len(ids)} tokens are too few for a crop of block_size {block_size} + 1")
        self._ids = ids
        self._block_size = block_size
        self._size = size
        self._seed = seed
        self._first = first

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        x, y = self.batch(np.asarray(indices, dtype=np.int64))
        return list(zip(x, y, strict=True))

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(x, y), both (len(indices), block_size) int64."""
        rows = self.rows(indices)
        return rows[:, :-1], rows[:, 1:]

    def rows(self, indices: NDArray[np.int64]) -> Tensor:
        """The crops with the token after each: (len(indices), block_size + 1) int64."""
        if len(indices) and not (0 <= indices.min() and indices.max() < self._size):
            raise IndexError(f"sample {indices.max()} is outside the {self._size} samples of this dataset")
        places = self.places(indices)[:, None] + np.arange(self._block_size + 1)
        return torch.from_numpy(self._ids[places])

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the crops start: uniform over the text."""
        numbers = indices.astype(np.uint64) + np.uint64(self._first)
        return (_mixed(self._seed, numbers) % np.uint64(len(self._ids) - self._block_size)).astype(np.int64)


def _mixed(seed: int, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The numbers-th outputs of SplitMix64 started from a mix of `seed` (Steele et al. 2014, figure 16)."""
    start = _finish(np.array([seed % (1 << 64)], dtype=np.uint64))
    return _finish(start + numbers * np.uint64(0x9E3779B97F4A7C15))


def _finish(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
