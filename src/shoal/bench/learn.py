"""What sending less costs in learning: one small GPT, by many methods, from the same seeds.

A character-level GPT of 2 layers, 64 wide, learns `text` on four workers: each method learns as many samples, in the
same batches. Counted are the bytes that all workers sent and received, at their transports (tcp), and the loss
over the whole validation split of the parameters that the servers end with. Hyperparameters are nanoGPT's for such a
text (RECIPES), or AdamW's defaults.

Where workers wait for each other they take turns at the samples. Asynchronous ones lease them (ps.loader), whoever
comes first, until all are learnt; the learning rate follows the share of samples leased.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from shoal.bench.learn_methods import METHODS, Method
from shoal.errors import ConfigurationError, JobError
from shoal.launch.local import launch

PROGRAM = ("-m", "shoal.bench.learn_worker")
STEP_SECONDS = 0.05  # of a worker whose speed is 1
STEP, RESULT = "LEARN STEP ", "LEARN RESULT "  # how the lines of its workers begin

Show = Callable[[str, int, int], None]  # what is under way, steps done, steps in all


class Recipe(msgspec.Struct, frozen=True):
    """How AdamW is set, wherever it runs. The rate rises over `warmup` steps to `rate`, and falls by a cosine to
    `floor`; clip: the norm that gradients are clipped to, 0 for none."""

    rate: float = 1e-3
    floor: float = 0.0
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 0.0

    def rate_at(self, share: float, steps: int) -> float:
        """share: of all steps, done."""
        step = share * steps
        if step < self.warmup:
            return self.rate * (step + 1) / (self.warmup + 1)
        return self.floor + 0.5 * (self.rate - self.floor) * (1 + math.cos(math.pi * share))


RECIPES = {
    "nanogpt": Recipe(floor=1e-4, warmup=100, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0),
    "plain": Recipe(),
}


@dataclass(frozen=True)
class Plan:
    """What to learn, by which methods. batch: sequences of one worker in a step."""

    text: str
    names: tuple[str, ...] = tuple(METHODS)
    seeds: int = 3
    steps: int = 1500
    workers: int = 4
    batch: int = 12
    recipe: str = "nanogpt"

    def workers_of(self, method: Method) -> int:
        return self.workers + method.whole

    def batch_of(self, method: Method) -> int:
        """Sequences of one worker in a step."""
        return self.batch * (self.workers if method.whole else 1)

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured."""
        for name in self.names:
            if name not in METHODS:
                raise ConfigurationError(f"--only {name}: known are {', '.join(METHODS)}")
        if self.recipe not in RECIPES:
            raise ConfigurationError(f"--recipe {self.recipe}: known are {', '.join(RECIPES)}")
        for name in ("seeds", "steps", "workers", "batch"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name} {getattr(self, name)} must be at least 1")
        if not Path(self.text).is_file():
            raise ConfigurationError(f"--text {self.text}: there is no such file")


class Lesson(msgspec.Struct, frozen=True):
    """What one run's workers are told. samples: of all workers together."""

    method: Method
    seed: int
    text: str
    steps: int
    batch: int
    samples: int
    recipe: Recipe


class Point(msgspec.Struct, frozen=True):
    """On the way: what the servers' parameters had come to. step: of those that a worker has in sync; seconds: that
    the worker of rank 0 had computed for until then; bytes: of all workers; val_loss: over a part of the split."""

    step: float
    seconds: float
    bytes: int
    val_loss: float


class Lived(msgspec.Struct, frozen=True):
    """What a worker says at its end. val_loss: of the worker of rank 0 alone. received, sent: bytes, from its first
    step on. seconds: of all its steps. points: bytes are its own. age: commits between the parameters that a
    contribution is of and its own commit, on average. warnings: that Shoal gave."""

    rank: int
    received: int
    sent: int
    seconds: float
    val_loss: float | None = None
    points: tuple[Point, ...] = ()
    age: float = 0.0
    warnings: tuple[str, ...] = ()


class Run(msgspec.Struct, frozen=True):
    """One method from one seed. bytes: of all workers, both ways. seconds: of the slowest one's steps. age: of
    contributions, in commits, on average over workers."""

    seed: int
    val_loss: float
    bytes: int
    seconds: float
    age: float = 0.0
    points: tuple[Point, ...] = ()
    warnings: tuple[str, ...] = ()


class LearnRow(msgspec.Struct, frozen=True):
    """One method. val_loss, bytes: the medians over seeds. warnings: what a user of the method is told."""

    name: str
    what: str
    seeds: list[int]
    val_loss: float
    bytes: int
    seconds: float
    runs: list[Run]
    warnings: tuple[str, ...] = ()


def learn(plan: Plan, show: Show) -> Iterator[LearnRow]:
    """A row for each method as it is done. Raises JobError when one of its processes fails."""
    plan.check()
    total = len(plan.names) * plan.seeds * plan.steps
    done = 0
    for name in plan.names:
        runs: list[Run] = []
        for seed in range(plan.seeds):
            shown = partial(_shown, show, f"{name}, seed {seed}", done, total)
            runs.append(_run(plan, METHODS[name], seed, shown))
            done += plan.steps
        show(f"{name} is done", done, total)
        yield _row(METHODS[name], runs)


def _shown(show: Show, title: str, done: int, total: int, step: int) -> None:
    show(title, done + step, total)


def _row(method: Method, runs: Sequence[Run]) -> LearnRow:
    losses, moved = [run.val_loss for run in runs], [run.bytes for run in runs]
    return LearnRow(
        name=method.name,
        what=method.what,
        seeds=[run.seed for run in runs],
        val_loss=statistics.median(losses),
        bytes=round(statistics.median(moved)),
        seconds=statistics.median(run.seconds for run in runs),
        runs=list(runs),
        warnings=runs[0].warnings,
    )


def _run(plan: Plan, method: Method, seed: int, at: Callable[[int], None]) -> Run:
    samples, workers = plan.workers * plan.steps * plan.batch, plan.workers_of(method)
    text = str(Path(plan.text).absolute())
    lesson = Lesson(method, seed, text, plan.steps, plan.batch_of(method), samples, RECIPES[plan.recipe])
    lived: list[Lived] = []
    others: list[str] = []

    def line(source: str, text: str) -> None:
        if text.startswith(STEP):
            at(int(text.removeprefix(STEP)))
        elif text.startswith(RESULT):
            lived.append(msgspec.json.decode(text.removeprefix(RESULT), type=Lived))
        else:
            others.append(f"{source}: {text}")

    command = (*PROGRAM, msgspec.json.encode(lesson).decode())
    status = launch(command, workers, 1, max_restarts=int(method.killed), on_line=line, env=_environment())
    if status != 0 or len(lived) < workers:
        ended = f"{len(lived)} of {workers} workers came to an end"
        raise JobError(f"{method.name}, seed {seed}: {ended}: {others[-3:]}")
    return _judged(seed, lived)


def _judged(seed: int, lived: Sequence[Lived]) -> Run:
    """What all workers of a run saw together."""
    (first,) = (each for each in lived if each.rank == 0)
    assert first.val_loss is not None
    moved = sum(each.received + each.sent for each in lived)
    share = moved / (first.received + first.sent)
    return Run(
        seed,
        first.val_loss,
        moved,
        max(each.seconds for each in lived),
        statistics.mean(each.age for each in lived),
        tuple(msgspec.structs.replace(point, bytes=round(point.bytes * share)) for point in first.points),
        first.warnings,
    )


def _environment() -> Mapping[str, str]:
    return {**os.environ, "SHOAL_TRANSPORT": "tcp", "OMP_NUM_THREADS": "1"}
