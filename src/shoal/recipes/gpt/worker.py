"""The training loop that every worker runs: `python -m shoal.recipes.gpt.worker FOLDER`.

All workers build the same model and the same samples from the run's folder; the servers hold the parameters, the
ledger deals the samples. A worker that joins late or is started again needs nothing else: the learning rate
follows the clock, and the parameters come from the servers. Worker 0 also evaluates, and ends the run with its
snapshot, model, sample and result.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_model

import shoal
from shoal.adapters.torch import LocalOptimizer, Optimizer
from shoal.client import ParameterServer
from shoal.errors import ShoalError
from shoal.recipes.gpt import evaluate
from shoal.recipes.gpt.crops import Crops
from shoal.recipes.gpt.folder import Folder, Result
from shoal.recipes.gpt.model import GPT
from shoal.recipes.gpt.sample import build, write
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import Ids, read_text, split

REPORT_SECONDS = 0.5
VALIDATION_SEED = 1  # of the crops that are evaluated on the way; any will do, but always the same


def train(folder: Folder) -> None:
    """Take part in the run that `folder` describes."""
    settings, tokenizer = folder.settings(), folder.tokenizer()
    training, validation = split(tokenizer.encode(read_text(settings.text)), settings.block_size)
    torch.manual_seed(settings.seed)
    model = build(settings, tokenizer.size)
    samples = Crops(
        training,
        settings.block_size,
        (settings.max_iters - settings.done_iters) * settings.batch_size,
        seed=settings.seed,
        first=settings.done_iters * settings.batch_size,
    )
    with shoal.connect() as ps:
        torch.manual_seed(settings.seed + 1 + ps.rank)  # dropout differs between workers
        opt = optimizer(ps, model, settings)
        leader = Leader(ps, model, folder, settings, training, validation) if ps.rank == 0 else None
        meter = Meter(ps)
        # The seed tells the crops of this part of a run from those before it, which a snapshot has in its log.
        for x, y in ps.loader(samples, batch_size=settings.share, shuffle=False, seed=settings.done_iters):
            iteration = iterations(opt)
            if leader:
                leader.look(iteration)
            for group in opt.param_groups:
                group["lr"] = settings.rate(iteration)
            loss = model(x, y)
            loss.backward()
            if isinstance(opt, LocalOptimizer) and settings.clip_norm:  # servers clip what they combine
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            opt.step()
            opt.zero_grad()
            meter.count(loss.item(), x.numel())
        if isinstance(opt, LocalOptimizer):
            opt.synchronise()
        if leader:
            leader.finish()


def optimizer(ps: ParameterServer, model: GPT, settings: Settings) -> Optimizer | LocalOptimizer:
    """AdamW, of the servers or, with `every`, of each worker by itself."""
    groups, betas = model.decayed(settings.weight_decay), (settings.beta1, settings.beta2)
    codecs = {"push": settings.push, "pull": settings.pull}
    if not settings.every:
        rule = shoal.AdamW(
            settings.learning_rate, betas, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm
        )
        return ps.optimizer(groups, rule, sync=settings.policy, **codecs)
    inner = torch.optim.AdamW(groups, settings.learning_rate, betas)
    local = shoal.LocalSteps(settings.every, inner, settings.outer, sync=settings.policy)
    return ps.optimizer(model, sync=local, **codecs)


def iterations(opt: Optimizer | LocalOptimizer) -> int:
    """How many are over. Clocks count from 1: steps, or windows."""
    if isinstance(opt, LocalOptimizer):
        return (opt.clock - 1) * opt.local.every + opt.taken
    return opt.clock - 1


@dataclass
class Meter:
    """Reports this worker's mean loss and tokens per second, every REPORT_SECONDS."""

    ps: ParameterServer
    since: float = field(default_factory=time.monotonic)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    def count(self, loss: float, tokens: int) -> None:
        self.losses.append(loss)
        self.tokens += tokens
        seconds = time.monotonic() - self.since
        if seconds >= REPORT_SECONDS:
            mean = sum(self.losses) / len(self.losses)
            self.ps.report(loss=mean, tokens_per_second=self.tokens / seconds)
            self.since, self.losses, self.tokens = time.monotonic(), [], 0


@dataclass
class Leader:
    """What worker 0 does besides training."""

    ps: ParameterServer
    model: GPT
    folder: Folder
    settings: Settings
    training: Ids
    validation: Ids
    looked: int = -1

    def look(self, iteration: int) -> None:
        """Evaluate at the start and every eval_interval iterations; take a snapshot every snapshot_interval."""
        settings, before = self.settings, self.looked
        self.looked = iteration
        if _passed(settings.eval_interval, before, iteration):
            self._say(iteration, self._estimate(self.training), self._estimate(self.validation))
        if before >= 0 and _passed(settings.snapshot_interval, before, iteration):
            self.ps.snapshot(self.folder.snapshot(iteration), wait=False, keep=settings.keep or None)

    def finish(self) -> None:
        """The loader has ended: every sample is committed, and the model is as the servers hold it."""
        settings, folder = self.settings, self.folder
        seconds = folder.seconds()
        snapshot = folder.snapshot(settings.max_iters)
        self.ps.snapshot(snapshot, keep=settings.keep or None)
        save_model(self.model, str(folder.draft(folder.model)))
        train_loss, val_loss = self._estimate(self.training), evaluate.measure(self.model, self.validation)
        self._say(settings.max_iters, train_loss, val_loss)
        text = write(self.model, folder.tokenizer(), settings.sample_tokens, seed=settings.seed)
        folder.draft(folder.sample).write_text(text, encoding="utf-8")
        folder.finish(
            Result(
                val_loss=val_loss,
                train_loss=train_loss,
                iterations=settings.max_iters,
                tokens=settings.max_iters * settings.batch_size * settings.block_size,
                seconds=round(seconds, 3),
                snapshot=str(snapshot),
            )
        )

    def _estimate(self, ids: Ids) -> float:
        crops = self.settings.eval_iters * self.settings.batch_size
        return evaluate.estimate(self.model, ids, crops=crops, seed=VALIDATION_SEED)

    def _say(self, iteration: int, train_loss: float, val_loss: float) -> None:
        self.ps.report(train_loss=train_loss, val_loss=val_loss)
        print(f"iteration {iteration}: train loss {train_loss:.4f}, validation loss {val_loss:.4f}", flush=True)


def _passed(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of `interval` lies in (before, now]: clocks may jump. Interval 0: never."""
    return interval > 0 and now // interval > before // interval


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m shoal.recipes.gpt.worker FOLDER (which `shoal train gpt` prepares)")
    try:
        train(Folder(Path(sys.argv[1]).resolve()))
    except ShoalError as error:
        sys.exit(f"shoal: error: {error}")


if __name__ == "__main__":
    main()
