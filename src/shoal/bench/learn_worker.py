"""A worker of `shoal bench learn`: a small GPT, by one method, from one seed.

python -m shoal.bench.learn_worker LESSON    (LESSON is JSON, see learn.Lesson)
"""

from __future__ import annotations

import copy
import os
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

import shoal
from shoal.adapters.torch import LocalOptimizer, Optimizer
from shoal.bench.learn import RESULT, STEP, STEP_SECONDS, Lesson, Lived, Point
from shoal.bench.learn_methods import Method
from shoal.client import ParameterServer
from shoal.optim import SGD, AdamW, DelayedNesterov, Nesterov, Rule
from shoal.recipes.gpt.crops import Crops
from shoal.recipes.gpt.evaluate import estimate, measure
from shoal.recipes.gpt.model import GPT, Shape
from shoal.recipes.gpt.text import Ids, make_tokenizer, read_text, split

LAYERS, WIDTH, HEADS, BLOCK = 2, 64, 4, 64
SHOWN_EVERY = 25  # steps
LOOKED_AT_EVERY = 100  # steps: how often the servers' parameters are
LOOKED_AT_CROPS = 256  # of the validation split, always the same

Numbers = npt.NDArray[np.int64]  # (samples,): which crops


def main() -> None:
    torch.set_num_threads(1)
    lesson = msgspec.json.decode(sys.argv[1], type=Lesson)
    text = read_text(lesson.text)
    tokenizer = make_tokenizer(text, "char", 0)
    training, validation = split(tokenizer.encode(text), BLOCK)
    torch.manual_seed(lesson.seed)
    model = GPT(Shape(tokenizer.size, BLOCK, LAYERS, HEADS, WIDTH))
    crops = Crops(training, BLOCK, lesson.samples, seed=lesson.seed)
    with shoal.connect() as ps:
        pupil = Pupil(lesson, ps, model, validation)
        began = time.monotonic()
        pupil.train(crops)
        received, sent = pupil.moved()
        loss = measure(model, validation) if ps.rank == 0 else None
        age = statistics.mean(pupil.ages) if pupil.ages else 0.0
        seconds = time.monotonic() - began
        lived = Lived(ps.rank, received, sent, seconds, loss, tuple(pupil.points), age, tuple(pupil.warned))
        print(RESULT + msgspec.json.encode(lived).decode(), flush=True)


class Pupil:
    """One worker's model, and what is noted on the way."""

    def __init__(self, lesson: Lesson, ps: ParameterServer, model: GPT, validation: Ids) -> None:
        self._lesson, self._ps, self._model, self._validation = lesson, ps, model, validation
        self._recipe = lesson.recipe
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._opt = optimizer(lesson, ps, model)
        self.warned = [str(item.message) for item in caught if issubclass(item.category, UserWarning)]
        self.points: list[Point] = []
        self.ages: list[int] = []
        self._computed = 0.0  # seconds
        self._before = ps.worker.bytes_moved()

    def train(self, crops: Crops) -> None:
        """All steps of this worker; the model ends with the servers' parameters."""
        for step, numbers in self._leased() if self._lesson.method.leased else self._in_turn():
            began = time.monotonic()
            for group in self._opt.param_groups:
                group["lr"] = self._recipe.rate_at(step / self._lesson.steps, self._lesson.steps)
            self._opt.zero_grad()
            x, y = crops.batch(numbers)
            self._model(x, y).backward()
            if isinstance(self._opt, LocalOptimizer) and self._recipe.clip:
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip)
            self._be_slow(began)
            self._computed += time.monotonic() - began
            version = self._opt.version
            self._opt.step()
            if self._opt.version != version:
                self.ages.append(self._opt.version - version - 1)
            if self._ps.rank == 0:
                self._look(step)
        if isinstance(self._opt, LocalOptimizer):
            self._opt.synchronise()

    def moved(self) -> tuple[int, int]:
        """Bytes received and sent since training began."""
        received, sent = self._ps.worker.bytes_moved()
        return received - self._before[0], sent - self._before[1]

    def _in_turn(self) -> Iterator[tuple[float, Numbers]]:
        """Each step and its samples: all workers' batches of a step lie side by side."""
        batch, every = self._lesson.batch, self._lesson.method.every
        step = (self._ps.worker.clock - 1) * max(1, every)  # 0, or who is started again goes on with the others
        fatal = self._lesson.steps // 2 + every // 2 if step == 0 else -1
        while step < self._lesson.steps:
            if self._lesson.method.killed and step == fatal and self._ps.rank == self._ps.workers - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield step, np.arange(batch) + (step * self._ps.workers + self._ps.rank) * batch
            # Who was too late for a commit goes on with the rest.
            step = step + 1 if every else self._ps.worker.clock - 1

    def _leased(self) -> Iterator[tuple[float, Numbers]]:
        """The same from a budget that all share; the step is the share that is leased, of all workers' steps."""
        numbers = TensorDataset(torch.arange(self._lesson.samples))
        for (leased,) in self._ps.loader(numbers, self._lesson.batch, shuffle=False):
            yield float(leased[0]) / self._lesson.samples * self._lesson.steps, leased.numpy()

    def _be_slow(self, began: float) -> None:
        method, taken = self._lesson.method, time.monotonic() - began
        if method.speeds:
            time.sleep(max(0.0, STEP_SECONDS / method.speeds[self._ps.rank % len(method.speeds)] - taken))
        elif method.late and self._ps.rank == self._ps.workers - 1:
            time.sleep(method.late * taken)

    def _look(self, step: float) -> None:
        """Show how far it is; now and then, what the servers' parameters have come to."""
        step = min(step + 1, self._lesson.steps)
        if int(step) % SHOWN_EVERY == 0:
            print(f"{STEP}{int(step)}", flush=True)
        if step >= LOOKED_AT_EVERY * (len(self.points) + 1):
            loss = estimate(self._served(), self._validation, crops=LOOKED_AT_CROPS, seed=0)
            self.points.append(Point(step, self._computed, sum(self.moved()), loss))

    def _served(self) -> GPT:
        """The model with the parameters that came from the servers last."""
        if not isinstance(self._opt, LocalOptimizer):
            return self._model
        served = copy.deepcopy(self._model)
        with torch.no_grad():
            for parameter, came in zip(served.parameters(), self._opt.served(), strict=True):
                parameter.copy_(came)
        return served


def optimizer(lesson: Lesson, ps: ParameterServer, model: GPT) -> Optimizer | LocalOptimizer:
    method, recipe = lesson.method, lesson.recipe
    if not method.every:
        rule = AdamW(recipe.rate, recipe.betas, weight_decay=recipe.weight_decay, clip_norm=recipe.clip or None)
        return ps.optimizer(model, rule, sync=method.policy, push=method.push, pull=method.pull)
    local = shoal.LocalSteps(
        method.every,
        torch.optim.AdamW(model.parameters(), recipe.rate, recipe.betas, weight_decay=recipe.weight_decay),
        outer(method, ps.workers),
        fragments=method.fragments,
        overlap=method.overlap,
        mix=method.mix,
        sync=method.policy,
        scaled=method.scaled,
        merge=method.merge,
    )
    return ps.optimizer(model, sync=local, push=method.push, pull=method.pull)


def outer(method: Method, workers: int) -> Rule:
    if method.delayed:
        return DelayedNesterov(lr=method.outer_rate, momentum=method.momentum, every=workers)
    if method.momentum:
        return Nesterov(lr=method.outer_rate, momentum=method.momentum)
    return SGD(lr=method.outer_rate)


if __name__ == "__main__":
    main()
