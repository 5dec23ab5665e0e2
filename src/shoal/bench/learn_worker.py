"""A worker of `shoal bench learn`: a small GPT, by one method, from one seed.

python -m shoal.bench.learn_worker LESSON    (LESSON is JSON, see learn.Lesson)
"""

from __future__ import annotations

import math
import sys
import time

import msgspec
import numpy as np
import torch

import shoal
from shoal.bench.learn import RESULT, STEP, Lesson, Lived
from shoal.client import ParameterServer
from shoal.optim import SGD, AdamW, Nesterov, Rule
from shoal.recipes.gpt.crops import Crops
from shoal.recipes.gpt.evaluate import measure
from shoal.recipes.gpt.model import GPT, Shape
from shoal.recipes.gpt.text import make_tokenizer, read_text, split

LAYERS, WIDTH, HEADS, BLOCK = 2, 64, 4, 64
RATE = 1e-3
SHOWN_EVERY = 25  # steps


def main() -> None:
    torch.set_num_threads(1)
    lesson = msgspec.json.decode(sys.argv[1], type=Lesson)
    text = read_text(lesson.text)
    tokenizer = make_tokenizer(text, "char", 0)
    training, validation = split(tokenizer.encode(text), BLOCK)
    torch.manual_seed(lesson.seed)
    model = GPT(Shape(tokenizer.size, BLOCK, LAYERS, HEADS, WIDTH))
    with shoal.connect() as ps:
        began = time.monotonic()
        crops = Crops(training, BLOCK, ps.workers * lesson.steps * lesson.batch, seed=lesson.seed)
        received, sent = train(lesson, ps, model, crops)
        seconds = time.monotonic() - began
        loss = measure(model, validation) if ps.rank == 0 else None
        print(RESULT + msgspec.json.encode(Lived(ps.rank, received, sent, seconds, loss)).decode(), flush=True)


def train(lesson: Lesson, ps: ParameterServer, model: GPT, crops: Crops) -> tuple[int, int]:
    """All steps of this worker; the model ends with the servers' parameters. Returns bytes received and sent."""
    method = lesson.method
    if method.every:
        inner = torch.optim.AdamW(model.parameters(), RATE)
        local = shoal.LocalSteps(
            method.every,
            inner,
            outer(lesson),
            fragments=method.fragments,
            overlap=method.overlap,
            mix=method.mix,
        )
        opt: torch.optim.Optimizer = ps.optimizer(model, sync=local, push=method.push, pull=method.pull)
    else:
        opt = ps.optimizer(model, AdamW(lr=RATE), sync=shoal.Sync(method.quorum), push=method.push, pull=method.pull)
    before = ps.worker.bytes_moved()
    step = 0
    while step < lesson.steps:
        began = time.monotonic()
        for group in opt.param_groups:
            group["lr"] = 0.5 * RATE * (1 + math.cos(math.pi * step / lesson.steps))
        x, y = crops.batch(np.arange(lesson.batch) + (step * ps.workers + ps.rank) * lesson.batch)
        opt.zero_grad()
        model(x, y).backward()
        if method.late and ps.rank == ps.workers - 1:
            time.sleep(method.late * (time.monotonic() - began))
        opt.step()
        # Who was too late for a commit goes on with the rest.
        step = step + 1 if method.every else ps.worker.clock - 1
        if ps.rank == 0 and step % SHOWN_EVERY == 0:
            print(f"{STEP}{step}", flush=True)
    if method.every:
        assert isinstance(opt, shoal.adapters.torch.LocalOptimizer)
        opt.synchronise()
    received, sent = ps.worker.bytes_moved()
    return received - before[0], sent - before[1]


def outer(lesson: Lesson) -> Rule:
    method = lesson.method
    if method.momentum:
        return Nesterov(lr=method.outer_rate, momentum=method.momentum)
    return SGD(lr=method.outer_rate)


if __name__ == "__main__":
    main()
