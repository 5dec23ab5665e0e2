"""What a GPT run is: every option in one frozen value, checked before anything starts.

Names and meanings are those of nanoGPT's configuration, so what one knows from there applies here. The command
line takes its options, defaults and help from the annotated fields below. Nothing in this file needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, assert_never

from shoal.errors import ConfigurationError
from shoal.policy import Async, Bounded, Policy, Sync

if TYPE_CHECKING:
    from shoal.optim import Rule

TokenizerKind = Literal["char", "bpe"]
PolicyKind = Literal["sync", "bounded", "async"]


@dataclass(frozen=True)
class Settings:
    """The options of one run (ConfigurationError for values that cannot work)."""

    text: Annotated[str, "UTF-8 text to learn; without one, the source of Python's standard library."] = ""
    tokenizer: Annotated[TokenizerKind, "One token per character, or byte pairs learnt from the text."] = "char"
    vocab_size: Annotated[int, "Tokens of the bpe tokenizer."] = 1024
    n_layer: Annotated[int, "Blocks of the model."] = 4
    n_head: Annotated[int, "Attention heads per block."] = 4
    n_embd: Annotated[int, "Width of the model."] = 128
    block_size: Annotated[int, "Tokens the model sees at once."] = 64
    dropout: Annotated[float, "Share of activations dropped in training."] = 0.0
    bias: Annotated[bool, "Give linear maps and norms a bias."] = False
    tie_weights: Annotated[bool, "Use the token embedding as the head."] = False
    batch_size: Annotated[int, "Sequences per iteration, shared out among the workers."] = 12
    max_iters: Annotated[int, "Iterations in all."] = 2000
    learning_rate: Annotated[float, "Learning rate after the warm-up."] = 1e-3
    min_lr: Annotated[float, "Learning rate at the end."] = 1e-4
    warmup_iters: Annotated[int, "Iterations of linear warm-up."] = 100
    lr_decay_iters: Annotated[int, "Iteration at which min_lr is reached; 0: max_iters."] = 0
    weight_decay: Annotated[float, "AdamW's weight decay, on matrices and embeddings."] = 0.1
    beta1: Annotated[float, "AdamW's first moment decay."] = 0.9
    beta2: Annotated[float, "AdamW's second moment decay."] = 0.99
    grad_clip: Annotated[float, "Largest norm of the combined gradient; 0: any."] = 1.0
    eval_interval: Annotated[int, "Iterations between evaluations."] = 250
    eval_iters: Annotated[int, "Batches per evaluation."] = 20
    snapshot_interval: Annotated[int, "Iterations between snapshots; 0: one, at the end."] = 0
    snapshots: Annotated[str, "Where snapshots go: a directory or a URL; without one, the run's folder."] = ""
    keep: Annotated[int, "Newest snapshots to keep, older ones beside them are removed; 0: all."] = 0
    sample_tokens: Annotated[int, "Tokens of the text that the trained model writes."] = 300
    seed: Annotated[int, "Decides initial values, samples and dropout."] = 1337
    workers: Annotated[int, "Processes that compute gradients."] = 2
    sync: Annotated[PolicyKind, "Who waits for whom."] = "sync"
    quorum: Annotated[float, "Share of the workers that sync waits for."] = 1.0
    staleness: Annotated[int, "Clocks that a worker may run ahead under bounded."] = 3
    every: Annotated[
        int, "Iterations of AdamW on each worker between two exchanges (DiLoCo); 0: each is the servers'."
    ] = 0
    push: Annotated[str, "Codec that gradients travel in, such as int8; without one, as they are."] = ""
    pull: Annotated[str, "Codec that changes of the parameters travel in."] = ""
    done_iters: int = 0  # iterations that the snapshot this run goes on from has seen

    def __post_init__(self) -> None:
        for name, holds, rule in _rules(self):
            if not holds:
                raise ConfigurationError(f"{name}={getattr(self, name)} cannot work: it must {rule}")

    @property
    def share(self) -> int:
        """Sequences that one worker takes per iteration."""
        return self.batch_size // self.workers

    @property
    def clip_norm(self) -> float | None:
        return self.grad_clip or None

    @property
    def policy(self) -> Policy:
        match self.sync:
            case "sync":
                return Sync(self.quorum)
            case "bounded":
                return Bounded(self.staleness)
            case "async":
                return Async()
            case other:
                assert_never(other)

    @property
    def outer(self) -> Rule:
        """What servers do with the differences that workers come to in a window."""
        from shoal.optim import DelayedNesterov, Nesterov  # as in _codecs

        return Nesterov() if self.policy.lockstep else DelayedNesterov(every=self.workers)

    def rate(self, iteration: int) -> float:
        """The learning rate of iteration `iteration` (0-based): linear warm-up, then half a cosine down to min_lr.

        Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
        """
        last = self.lr_decay_iters or self.max_iters
        if iteration < self.warmup_iters:
            return self.learning_rate * (iteration + 1) / (self.warmup_iters + 1)
        if iteration >= last:
            return self.min_lr
        progress = (iteration - self.warmup_iters) / (last - self.warmup_iters)
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (self.learning_rate - self.min_lr)


# What the parameters and the ids mean: a resumed run cannot change these.
FIXED = ("tokenizer", "vocab_size", "n_layer", "n_head", "n_embd", "block_size", "bias", "tie_weights")

_POSITIVE = (
    "n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters", "eval_interval", "eval_iters", "workers",
)  # fmt: skip
_NOT_NEGATIVE = (
    "warmup_iters", "lr_decay_iters", "weight_decay", "min_lr", "grad_clip", "snapshot_interval", "keep",
    "sample_tokens", "seed", "staleness", "every",
)  # fmt: skip
_IN_WINDOWS = ("max_iters", "snapshot_interval", "done_iters")
_BYTES = 256


def _rules(s: Settings) -> tuple[tuple[str, bool, str], ...]:
    """(option, whether it holds, what it must do): the first that does not hold is the error."""
    windows = f"be a multiple of every={s.every}: it falls between two windows"
    if unmet := [name for name in _POSITIVE if getattr(s, name) < 1]:
        return ((unmet[0], False, "be at least 1"),)
    return (
        *((name, getattr(s, name) >= 0, "be 0 or more") for name in _NOT_NEGATIVE),
        ("n_embd", s.n_embd % s.n_head == 0, f"be a multiple of n_head={s.n_head}"),
        ("vocab_size", s.tokenizer == "char" or s.vocab_size > _BYTES, f"be above {_BYTES}, the single bytes"),
        ("dropout", 0 <= s.dropout < 1, "lie in [0, 1)"),
        ("beta1", 0 <= s.beta1 < 1, "lie in [0, 1)"),
        ("beta2", 0 <= s.beta2 < 1, "lie in [0, 1)"),
        ("learning_rate", 0 < s.learning_rate < math.inf, "be above 0"),
        ("min_lr", s.min_lr <= s.learning_rate, f"not be above learning_rate={s.learning_rate:g}"),
        ("batch_size", s.batch_size % s.workers == 0, f"be a multiple of workers={s.workers}: they share it equally"),
        ("quorum", 0 < s.quorum <= 1, "lie in (0, 1]; 1 waits for every worker"),
        *(_codecs(s) if s.push or s.pull else ()),
        *((name, getattr(s, name) % max(1, s.every) == 0, windows) for name in _IN_WINDOWS),
        ("max_iters", s.max_iters > s.done_iters, f"be above the {s.done_iters} iterations that the snapshot has seen"),
    )


def _codecs(s: Settings) -> tuple[tuple[str, bool, str], ...]:
    from shoal.codec.codec import PULLS, PUSHES  # takes a third of a second, which every other command would wait for

    known = {"push": PUSHES, "pull": PULLS}
    return tuple(
        (key, getattr(s, key) in ("", *names), f"be one of {', '.join(names)}") for key, names in known.items()
    )
