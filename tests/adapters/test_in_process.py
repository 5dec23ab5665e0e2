"""The adapter on a real job: coordinator, server and workers in this process."""

from __future__ import annotations

import copy
import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from shoal.adapters.torch import loader, optimizer
from shoal.client import connect
from shoal.config import Job, Limits
from shoal.errors import ConfigurationError, JobError, NonFiniteGradientError
from shoal.optim import SGD, AdamW
from shoal.policy import Async, Bounded, Sync
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.worker import Worker


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def gap(one: nn.Module, other: nn.Module) -> float:
    return max((p - q).abs().max().item() for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def together() -> Iterator[Callable]:
    """together(workers, train): run train(worker) on a thread for each, and return their results by rank."""
    jobs: list[EmbeddedJob] = []

    def run(workers: int, train: Callable[[Worker], object], servers: int = 2) -> list[object]:
        job = EmbeddedJob(Job(workers=workers, servers=servers, limits=Limits(wait_ms=20_000)))
        jobs.append(job)
        results: dict[int, object] = {}

        def live(rank: int) -> None:
            worker = Worker(job.job, job.address, rank, thread=job.thread)
            try:
                results[rank] = train(worker)
            except Exception as error:  # noqa: BLE001 - handed to the test
                results[rank] = error
            finally:
                worker.close()

        threads = [threading.Thread(target=live, args=(rank,)) for rank in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert not any(thread.is_alive() for thread in threads)
        return [results[rank] for rank in range(workers)]

    yield run
    for job in jobs:
        job.close()


def test_alone_it_equals_plain_torch():
    model = mlp()
    twin = copy.deepcopy(model)
    reference = torch.optim.AdamW(twin.parameters(), 0.01)
    with connect() as ps:
        opt = ps.optimizer(model, AdamW(lr=0.01, clip_norm=0.5))
        for _ in range(20):
            for part in range(2):  # two backwards a step
                x = torch.randn(4, 6)
                for each in (model, twin):
                    (F.mse_loss(each(x), x.sum(1, keepdim=True)) * (1 + part)).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            for each in (opt, reference):
                each.step()
                each.zero_grad()
        assert opt.clock == 21
    assert gap(model, twin) < 1e-6


@pytest.mark.parametrize("value", [torch.tensor(1.5), np.float32(1.5), 1.5, 3, 10**30, True])
def test_a_figure_is_whatever_float_takes(value):
    with connect() as ps:
        opt = ps.optimizer(nn.Linear(2, 1), SGD())
        ps.report(loss=value)
        opt.zero_grad()
        for _ in range(2):
            ps.worker.step([0.1])  # an answer: what was told before it has arrived
        (member,) = ps._embedded.nodes[0].machine().membership.members.values()
        assert member.figures == {"loss": float(value)} and type(member.figures["loss"]) is float


@pytest.mark.parametrize("value", ["x", None, [1.0], torch.zeros(2), 10**400, nn.Linear(2, 2)])
def test_a_figure_that_is_no_number_is_its_callers_error_and_training_goes_on(value):
    with connect() as ps:
        ps.optimizer(nn.Linear(2, 1), SGD())
        with pytest.raises(ConfigurationError, match=r"ps\.report\(perplexity=.*perplexity is none"):
            ps.report(loss=1.0, perplexity=value)
        ps.worker.step([0.1])
        assert ps.worker.clock == 2


def test_a_snapshot_before_the_model_is_refused_at_once(tmp_path):
    with connect() as ps:
        with pytest.raises(ConfigurationError, match=r"worker 0 cannot take.*make ps\.optimizer\(\.\.\.\) first"):
            ps.snapshot(tmp_path / "early")
        ps.optimizer(nn.Linear(2, 1), SGD())
        assert ps.snapshot(tmp_path / "first") > 0


def test_float16_with_grad_scaler_and_odd_layouts_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 1)).to(memory_format=torch.channels_last)
    model = model.half()
    x = torch.randn(32, 3, 4, 4).half().to(memory_format=torch.channels_last)
    y = x.float().mean((1, 2, 3))[:, None]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)  # overflows at first
    losses = []
    with connect() as ps:
        opt = ps.optimizer(model, SGD(lr=0.05, momentum=0.9))
        for _ in range(40):
            opt.zero_grad()
            loss = F.mse_loss(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
            losses.append(loss.item())
    assert scaler.get_scale() < 2.0**24
    assert losses[-1] < losses[0] / 2


def test_two_workers_equal_one_process_on_the_joined_batch(together):
    data = torch.randn(12, 8, 6)
    start = mlp()
    twin = copy.deepcopy(start)

    def train(worker: Worker) -> nn.Module:
        model = copy.deepcopy(start) if worker.rank == 0 else mlp()  # whoever seeds, all begin the same
        opt = optimizer(worker, model, SGD(lr=0.1, momentum=0.9, clip_norm=0.3), sync=Sync())
        initial = copy.deepcopy(model)
        for joined in data:
            x = joined[worker.rank * 4 : worker.rank * 4 + 4]
            opt.zero_grad()
            F.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
            opt.step()
        return initial, model

    (initial, one), (initial_too, other) = together(2, train)
    assert gap(initial, initial_too) == 0
    assert gap(one, other) == 0
    twin.load_state_dict(initial.state_dict())
    reference = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    for x in data:
        reference.zero_grad()
        F.mse_loss(twin(x), x.sum(1, keepdim=True)).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
        reference.step()
    assert gap(one, twin) < 1e-5


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("sync", [Sync(), Bounded(2), Async()], ids=["sync", "bounded", "async"])
def test_every_sample_once_an_epoch(together, sync, accumulate):
    dataset = TensorDataset(torch.arange(53), torch.randn(53, 6))

    def train(worker: Worker) -> list[list[int]]:
        model = mlp()
        opt = optimizer(worker, model, SGD(lr=0.01), sync=sync)
        batches = loader(worker, dataset, 4, accumulate=accumulate)
        epochs: list[list[int]] = []
        for _ in range(3):
            epochs.append([])
            for number, (ids, x) in enumerate(batches, 1):
                epochs[-1] += ids.tolist()
                model(x).pow(2).mean().backward()
                if number % accumulate == 0:
                    opt.step()
                    opt.zero_grad()
            if any(p.grad is not None for p in model.parameters()):
                opt.step()
                opt.zero_grad()
        return epochs

    results = together(3, train)
    for epoch in range(3):
        seen = Counter(index for result in results for index in result[epoch])
        assert seen == Counter(range(53))


def test_the_others_go_on_when_one_worker_meets_nan(together):
    def train(worker: Worker) -> int:
        model = mlp()
        opt = optimizer(worker, model, SGD(lr=0.01))
        for step in range(8):
            x = torch.full((2, 6), float("nan") if worker.rank == 1 and step == 3 else 1.0)
            opt.zero_grad()
            model(x).sum().backward()
            opt.step()
        return opt.clock

    fine, broken = together(2, train)
    assert fine == 9
    assert isinstance(broken, NonFiniteGradientError)
    assert "worker 1, clock 4" in str(broken)


def test_who_takes_no_step_at_the_end_of_a_data_epoch_is_told_what_is_dropped(together):
    """Leases of 8 samples in two batches; the last one is of a single sample, so of one batch."""
    data = TensorDataset(torch.arange(17.0))

    def train(worker):
        model = nn.Linear(1, 1)
        opt = optimizer(worker, model, SGD(lr=0.1))
        for _ in range(2):
            for number, (x,) in enumerate(loader(worker, data, 4, accumulate=2), 1):
                model(x[:, None]).sum().backward()
                if number % 2 == 0:
                    opt.step()

    with pytest.warns(UserWarning, match=r"followed what worker 0 took last .1 samples.*opt.step\(\) at the end"):
        together(1, train)


def test_a_process_may_connect_again_and_again_and_go_on_with_its_model():
    def once() -> int:
        with connect() as ps:
            model = nn.Linear(1, 1)
            optimizer = ps.optimizer(model, SGD(lr=0.1))
        model(torch.ones(1, 1)).sum().backward()
        ps.report(loss=1.0)
        with pytest.raises(JobError, match="has left the job"):
            optimizer.step()
        del ps, model, optimizer
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    assert once() == once() == once()


def test_who_closes_has_left_by_then():
    """Politely: the coordinator need not wait for its silence to be sure."""
    job = EmbeddedJob(Job(workers=1, servers=1))
    worker = Worker(job.job, job.address, 0, thread=job.thread)
    optimizer(worker, nn.Linear(1, 1), SGD(lr=0.1))
    assert "worker/0" in {member.name for member in job.status().members}
    worker.close()
    assert "worker/0" not in {member.name for member in job.status().members}
    job.close()
