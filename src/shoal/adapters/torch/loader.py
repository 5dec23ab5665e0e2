"""Batches of samples that no other worker takes: each sample of a data epoch is in exactly one commit.

The coordinator leases positions of a shuffled order; every worker computes the order itself from the
seed, so that no index travels. What a lease covers counts as trained on once the step is committed; a
worker that dies before that leaves its samples to the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from shoal.adapters.torch.binding import binding_of
from shoal.errors import ConfigurationError
from shoal.runtime.worker import Worker
from shoal.vocabulary import Dataset, Lease

Collate = Callable[[list[Any]], Any]


def loader(
    worker: Worker,
    dataset: Any,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    accumulate: int = 1,
    collate_fn: Collate | None = None,
    balance: bool | None = None,
) -> Loader:
    """Iterate over this worker's share of a map-style dataset; each `for` over it is one data epoch.

    dataset: has __len__ and __getitem__ (and __getitems__, if it likes to be asked for many at once).
    batch_size: samples per batch and worker. The last batches of a data epoch may be smaller.
    seed, shuffle: the order is numpy's PCG64 permutation of (seed, data epoch), or the dataset's own.
    accumulate: how many batches the loop runs backward on before each step; they are leased together
        (fewer than that at the end of a data epoch only where fewer samples are left; step there, too).
    collate_fn: makes a batch of a list of samples; torch's default_collate unless given.
    balance: lease slower workers fewer samples, so that clocks keep step; by default under Bounded, and
        with LocalSteps(scaled=True), where a slower worker then takes fewer steps in a window.

    All workers give the same arguments. Raises ConfigurationError for an iterable-style dataset, for
    one with fewer samples than workers, and for sizes below 1.
    """
    return Loader(worker, dataset, batch_size, seed, shuffle, accumulate, collate_fn, balance)


class Loader:
    """See loader()."""

    def __init__(
        self,
        worker: Worker,
        dataset: Any,
        batch_size: int,
        seed: int,
        shuffle: bool,
        accumulate: int,
        collate_fn: Collate | None,
        balance: bool | None,
    ) -> None:
        self._size = _size(dataset, worker.workers)
        for name, value in (("batch_size", batch_size), ("accumulate", accumulate)):
            if value != int(value) or value < 1:
                raise ConfigurationError(f"ps.loader(...): {name}={value!r} must be a whole number of at least 1")
        if seed < 0:
            raise ConfigurationError(f"ps.loader(...): seed={seed} must be 0 or more")
        self._worker, self._dataset, self._collate = worker, dataset, collate_fn
        self._batch_size, self._accumulate, self._balance = int(batch_size), int(accumulate), balance
        self._seed, self._shuffle = seed, shuffle

    def __len__(self) -> int:
        """About how many batches this worker gets in one pass, if all workers are equally quick."""
        leases = -(-self._size // (self._worker.workers * self._batch_size * self._together))
        return leases * self._together

    def __iter__(self) -> Iterator[Any]:
        if self._worker.leased:
            warnings.warn(
                f"no step() followed what worker {self._worker.rank} took last ({self._worker.leased} samples): what "
                f"was computed on them is dropped, and they are dealt again. Call opt.step() at the end of each data "
                f"epoch, too: with accumulate={self._accumulate} its last step may be over fewer batches",
                stacklevel=2,
            )
        # The worker counts, not this object: a loader made anew for every pass goes on where the last one ended.
        return self._pass(self._worker.next_data_epoch())

    # --- helpers ----------------------------------------------------------------------------------

    def _pass(self, epoch: int) -> Iterator[Any]:
        """One data epoch. Empty if the job has done with it: so a restarted worker's loop catches up."""
        order = self._order(epoch)
        while (lease := self._lease(epoch)) is not None:
            positions = np.concatenate([np.arange(0), *(np.arange(start, stop) for start, stop in lease.spans)])
            parts = self._parts(len(positions))
            for indices in np.array_split(positions if order is None else order[positions], parts):
                # All ranks of a group have as many batches; one without samples, of one that counts for nothing.
                yield self._batch(indices if len(indices) else np.zeros(1, np.int64))

    def _lease(self, epoch: int) -> Lease | None:
        lease = self._worker.lease(self._described(), epoch)
        binding = binding_of(self._worker)
        # In a group all ranks bring fresh parameters in at the same place: what was begun comes when it is waited for.
        if binding is not None and not (binding.collective is not None and binding.begun):
            binding.refresh(self._worker.version)
            binding.chance.remember(self._worker.clock)  # who waited for samples may have passed over clocks
        return lease

    @property
    def _together(self) -> int:
        """Batches that are leased together: those of a step, or of all steps in a window of LocalSteps."""
        binding = binding_of(self._worker)
        return self._accumulate * (1 if binding is None else binding.every)

    def _parts(self, samples: int) -> int:
        """How many batches a lease makes."""
        binding = binding_of(self._worker)
        if binding is not None and binding.collective is not None:
            return self._together
        parts = min(self._together, samples)
        if binding is not None and binding.scaled:
            parts = max(1, min(parts, samples // self._batch_size))  # a slower worker has fewer, not smaller ones
        if binding is not None:
            binding.steps = max(1, parts // self._accumulate)  # a window ends with what was leased for it
        return parts

    def _described(self) -> Dataset:
        binding = binding_of(self._worker)
        balance = self._balance
        if balance is None:
            balance = binding is not None and (binding.policy.kind == "bounded" or binding.scaled)
        return Dataset(self._size, self._batch_size * self._together, self._seed, balance)

    def _order(self, epoch: int) -> npt.NDArray[np.int64] | None:
        if not self._shuffle:
            return None
        return np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(self._size)

    def _batch(self, indices: npt.NDArray[np.int64]) -> Any:
        if type(self._dataset) is TensorDataset and self._collate is None:
            return [tensor[indices] for tensor in self._dataset.tensors]
        chosen: list[int] = indices.tolist()
        many = getattr(self._dataset, "__getitems__", None)
        samples: Sequence[Any] = many(chosen) if callable(many) else [self._dataset[index] for index in chosen]
        return default_collate(list(samples)) if self._collate is None else self._collate(list(samples))


def _size(dataset: Any, workers: int) -> int:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigurationError(
            f"ps.loader(...) leases samples by index, so the dataset needs __len__ and __getitem__, which "
            f"{type(dataset).__name__} lacks; iterate over it without ps.loader, a different part on each worker"
        )
    size = len(dataset)
    if size == 0:
        raise ConfigurationError("ps.loader(...): the dataset is empty; check where it is read from")
    if size < workers:
        raise ConfigurationError(
            f"the dataset has {size} samples for {workers} workers: give it at least {workers}, or start fewer workers"
        )
    return size
