"""The loader: leases become batches, each position once, in an order all workers agree on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from shoal.adapters.torch import loader, optimizer
from shoal.errors import ConfigurationError
from shoal.optim import SGD
from shoal.policy import Bounded
from shoal.vocabulary import Dataset, Lease


class Numbers(TorchDataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"x": index}


def test_each_sample_once_in_a_new_order_every_epoch(make_worker):
    def leases(epoch):
        return [Lease(1, epoch, ((0, 4),)), Lease(2, epoch, ((7, 10), (4, 5))), Lease(3, epoch, ((5, 7),)), None]

    samples = loader(make_worker(leases=[*leases(0), *leases(1)]), Numbers(10), 4, seed=3)
    passes = [[batch["x"] for batch in samples] for _ in range(2)]
    assert [[len(batch) for batch in one] for one in passes] == [[4, 4, 2]] * 2
    orders = [torch.cat(one).tolist() for one in passes]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]
    again = loader(make_worker(leases=leases(0)), Numbers(10), 4, seed=3)
    assert torch.cat([batch["x"] for batch in again]).tolist() == orders[0]
    other = loader(make_worker(leases=leases(0)), Numbers(10), 4, seed=4)
    assert torch.cat([batch["x"] for batch in other]).tolist() != orders[0]


def test_what_is_asked_for(make_worker):
    worker = make_worker(leases=[None, None])
    samples = loader(worker, Numbers(10), 2, accumulate=3, seed=5)
    assert [list(samples), list(samples)] == [[], []]
    assert worker.asked == [(Dataset(10, 6, 5, False), 0), (Dataset(10, 6, 5, False), 1)]


def test_a_loader_made_anew_for_every_pass_goes_on_with_the_next_data_epoch(make_worker):
    worker = make_worker(leases=[None, None])
    assert [list(loader(worker, Numbers(10), 2)) for _ in range(2)] == [[], []]
    assert [epoch for _, epoch in worker.asked] == [0, 1]


def test_balance_follows_the_policy_unless_told(make_worker):
    def asks(sync_options, **options):
        worker = make_worker(leases=[None])
        optimizer(worker, nn.Linear(1, 1), SGD(), **sync_options)
        list(loader(worker, Numbers(4), 2, **options))
        return worker.asked[0][0].balance

    assert asks({}) is False
    assert asks({"sync": Bounded(2)}) is True
    assert asks({"sync": Bounded(2)}, balance=False) is False


def test_accumulation_cuts_a_lease_into_that_many_batches(make_worker):
    worker = make_worker(leases=[Lease(1, 0, ((0, 6),)), Lease(2, 0, ((6, 11),)), Lease(3, 0, ((11, 13),)), None])
    samples = loader(worker, Numbers(13), 2, accumulate=3, shuffle=False)
    assert [batch["x"].tolist() for batch in samples] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10], [11], [12]]


def test_tensor_datasets_and_datasets_that_fetch_many(make_worker):
    x, y = torch.randn(5, 2), torch.arange(5)
    one = loader(make_worker(leases=[Lease(1, 0, ((0, 5),)), None]), TensorDataset(x, y), 5, shuffle=False)
    (batch,) = one
    assert torch.equal(batch[0], x)
    assert torch.equal(batch[1], y)

    class Many(Numbers):
        def __getitems__(self, indices):
            return [{"x": -index} for index in indices]

    many = loader(make_worker(leases=[Lease(1, 0, ((1, 3),)), None]), Many(5), 2, shuffle=False)
    assert [batch["x"].tolist() for batch in many] == [[-1, -2]]
    collated = loader(
        make_worker(leases=[Lease(1, 0, ((0, 2),)), None]), TensorDataset(x), 2, shuffle=False, collate_fn=len
    )
    assert list(collated) == [2]


def test_a_restarted_workers_loop_catches_up_with_the_job(make_worker):
    """The job has done with data epochs 0 and 1: those passes are empty, and the third gets samples."""
    worker = make_worker(leases=[None, None, Lease(7, 2, ((0, 3),)), None])
    samples = loader(worker, Numbers(10), 4)
    assert [len(list(samples)) for _ in range(3)] == [0, 0, 1]
    assert [epoch for _, epoch in worker.asked] == [0, 1, 2, 2]


def test_parameters_that_came_with_a_lease_are_in_place(make_worker):
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.zeros(3, 2).t())  # not contiguous: lands in a host copy first
    worker = make_worker(leases=[None])
    optimizer(worker, model, SGD())
    worker.bound[0].view("float32")[:] = 7
    worker.version += 1
    assert list(loader(worker, Numbers(2), 1)) == []
    assert (model.weight == 7).all()


def test_length_is_this_workers_share(make_worker):
    assert len(loader(make_worker(workers=4), Numbers(100), 10)) == 3
    assert len(loader(make_worker(workers=2), Numbers(100), 10, accumulate=2)) == 6


@pytest.mark.parametrize(
    ("dataset", "options", "says"),
    [
        (Numbers(2), {}, "the dataset has 2 samples for 4 workers"),
        (Numbers(0), {}, "empty"),
        (Numbers(8), {"batch_size": 0}, "batch_size=0"),
        (Numbers(8), {"accumulate": 1.5}, "accumulate=1.5"),
        (Numbers(8), {"seed": -1}, "seed=-1"),
        (
            type("Stream", (IterableDataset,), {"__iter__": lambda self: iter([])})(),
            {},
            "__len__ and __getitem__, which Stream lacks",
        ),
        (iter([1, 2]), {}, "list_iterator"),
    ],
)
def test_what_cannot_be_leased_is_refused(make_worker, dataset, options, says):
    with pytest.raises(ConfigurationError, match=says):
        loader(make_worker(workers=4), dataset, **{"batch_size": 2, **options})
