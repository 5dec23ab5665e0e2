"""A worker of `shoal bench straggler`: a training loop whose compute is a sleep, alone or in a job.

python -m shoal.bench.straggler_worker PACE    (PACE is JSON, see orders.Pace)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

import msgspec
import torch
from torch import Tensor, nn

from shoal.bench.control import Follower
from shoal.bench.orders import Done, Log, Pace, Trial
from shoal.bench.straggler import DATASET_SAMPLES, LAYERS, worker_name
from shoal.client import ParameterServer
from shoal.core.machine import Fresh
from shoal.optim import AdamW
from shoal.policy import from_spec
from shoal.runtime import process
from shoal.runtime.worker import Worker


class Recorder(Worker):
    """A worker that remembers whether its last contribution was committed."""

    committed = False

    def step(
        self, rates: Sequence[float], multiplier: float = 1.0, void: bool = False, samples: int | None = None
    ) -> Fresh:
        fresh = super().step(rates, multiplier, void, samples)
        self.committed = fresh.committed
        return fresh


def main() -> None:
    torch.set_num_threads(1)
    pace = msgspec.json.decode(sys.argv[1], type=Pace)
    follower = Follower(pace.control, worker_name(pace.rank), Trial)
    for trial in follower:
        follower.answer(Log(tuple(_train(pace, trial) if trial.coordinator else _alone(pace, trial))))


def _alone(pace: Pace, trial: Trial) -> Iterator[Done]:
    """The loop in one process, with torch's own optimizer."""
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    begin = time.monotonic()
    for start in range(0, DATASET_SAMPLES, pace.batch):
        _compute(model, torch.arange(start, start + pace.batch), pace)
        optimizer.step()
        optimizer.zero_grad()
        at = time.monotonic() - begin
        yield Done(at, pace.batch, True)
        if at >= trial.seconds:
            return


def _train(pace: Pace, trial: Trial) -> Iterator[Done]:
    """The same loop through Shoal's public interface."""
    assert trial.policy is not None
    worker = Recorder(process.job_from(), trial.coordinator, pace.rank)
    with ParameterServer(worker, None) as ps:
        model = _model()
        optimizer = ps.optimizer(model, AdamW(lr=1e-3), sync=from_spec(trial.policy))
        batches = ps.loader(range(DATASET_SAMPLES), pace.batch, balance=trial.balance)
        begin = time.monotonic()
        for batch in batches:
            _compute(model, batch, pace)
            optimizer.step()
            optimizer.zero_grad()
            at = time.monotonic() - begin
            yield Done(at, len(batch), worker.committed)
            if at >= trial.seconds:
                return


def _model() -> nn.Module:
    torch.manual_seed(0)
    pairs = zip(LAYERS, LAYERS[1:], strict=False)
    return nn.Sequential(*(layer for sizes in pairs for layer in (nn.Linear(*sizes), nn.ReLU())))


def _compute(model: nn.Module, batch: Tensor, pace: Pace) -> None:
    """Gradients of a batch of sample numbers; the sleep stands in for a model that takes its time."""
    inputs = torch.sin(batch[:, None] * torch.arange(1.0, LAYERS[0] + 1))
    model(inputs).square().mean().backward()
    time.sleep(pace.sample_seconds * len(batch))


if __name__ == "__main__":
    main()
