"""A worker of `shoal bench overlap`, of either side: trains a GPT, or does one half of that.

python -m shoal.bench.overlap_worker TRAINEE    (TRAINEE is JSON, see orders.Trainee)

Its kinds of steps:

    compute     forward and backward of a twin of the model that no optimizer knows; parameters stay
    exchange    gradients that exist already go out through the model's hooks, and the optimizer steps
    both        forward, backward and the optimizer's step: training
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Iterable, Sequence

import msgspec
import torch
from torch import Tensor, nn

from shoal.adapters.torch import optimizer as shoal_optimizer
from shoal.bench.orders import BOTH, COMPUTE, EXCHANGE, SHOAL, Answer, Size, Trainee
from shoal.bench.peers import collectives
from shoal.bench.rules import RULES
from shoal.bench.turns import follow
from shoal.bench.workload import SCALES, SETS, difference, digest, handed_out, torch_optimizer
from shoal.client import connect
from shoal.policy import Sync

MODEL = "shoal.recipes.gpt.model"  # by name, for recipes and bench do not import each other

Batch = tuple[Tensor, Tensor]


def main() -> None:
    trainee = msgspec.json.decode(sys.argv[1], type=Trainee)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = gpt(trainee.size)
    if trainee.side == SHOAL:
        with connect() as ps:
            initial = copy.deepcopy(model)
            chosen = shoal_optimizer(ps.worker, model, RULES[trainee.optimizer], sync=Sync())
            Training(trainee, initial, model, model, chosen).follow()
    else:
        collectives.join(trainee.meeting, trainee.rank, trainee.workers)
        initial = copy.deepcopy(model)
        wrapped = collectives.wrapped(model)
        Training(trainee, initial, model, wrapped, torch_optimizer(trainee.optimizer, model.parameters())).follow()


class Training:
    """One worker's model, its batches and what it has done with them.

    model: holds the parameters; called: what forward goes through, the model or what wraps it.
    """

    def __init__(
        self, trainee: Trainee, initial: nn.Module, model: nn.Module, called: nn.Module, chosen: torch.optim.Optimizer
    ) -> None:
        self._trainee, self._initial, self._model, self._called, self._chosen = trainee, initial, model, called, chosen
        self._twin = copy.deepcopy(initial)
        self._batches = batches_of(trainee.size, trainee.rank)
        self._gradients = gradients_of(initial, trainee.rank)
        self._taken: list[str] = []  # the kind of each step that moved the parameters

    def follow(self) -> None:
        steps = {COMPUTE: self._compute, EXCHANGE: self._exchange, BOTH: self._both}
        follow(self._trainee.control, self._trainee.name, steps, self._outcome)

    def _compute(self, number: int) -> None:
        backward(self._twin(*self._batches[number % SETS]))
        self._twin.zero_grad(set_to_none=True)

    def _exchange(self, _: int) -> None:
        backward(handed_out(self._model.parameters(), self._gradients[len(self._taken) % SETS]))
        self._step(EXCHANGE)

    def _both(self, _: int) -> None:
        backward(self._called(*self._batches[len(self._taken) % SETS]))
        self._step(BOTH)

    def _step(self, kind: str) -> None:
        self._chosen.step()
        self._chosen.zero_grad(set_to_none=True)
        self._taken.append(kind)

    def _outcome(self, _: int) -> Answer:
        found = None
        if self._trainee.rank == 0:
            expected = reference(self._trainee, copy.deepcopy(self._initial), self._taken)
            found = difference(self._model.parameters(), expected)
        return Answer(digests=(digest(self._model.parameters()),), difference=found)


def gpt(size: Size) -> nn.Module:
    """The recipe's GPT, the same in every process."""
    recipe = importlib.import_module(MODEL)
    torch.manual_seed(0)
    model: nn.Module = recipe.GPT(
        recipe.Shape(
            vocab_size=size.vocabulary,
            block_size=size.context,
            n_layer=size.layers,
            n_head=size.heads,
            n_embd=size.width,
            bias=True,
            tie_weights=True,
        )
    )
    return model


def batches_of(size: Size, rank: int) -> list[Batch]:
    """SETS batches of a worker: (batch, context) ids, and the same shifted by one."""
    generator = torch.Generator().manual_seed(1 + rank)
    shape = (SETS, size.batch, size.context + 1)
    return [(ids[:, :-1], ids[:, 1:]) for ids in torch.randint(size.vocabulary, shape, generator=generator)]


def gradients_of(model: nn.Module, rank: int) -> list[list[Tensor]]:
    """SETS sets of gradients of a worker, for exchanges without compute."""
    generator = torch.Generator().manual_seed(1 + rank)
    return [[scale * torch.randn(item.shape, generator=generator) for item in model.parameters()] for scale in SCALES]


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def reference(trainee: Trainee, model: nn.Module, taken: Sequence[str]) -> Iterable[Tensor]:
    """The parameters after these steps of one process: torch's own optimizer on the mean gradient."""
    ranks = range(trainee.workers)
    batches = [batches_of(trainee.size, rank) for rank in ranks]
    gradients = [gradients_of(model, rank) for rank in ranks]
    chosen = torch_optimizer(trainee.optimizer, model.parameters())
    for number, kind in enumerate(taken):
        which = number % SETS
        for rank in ranks:
            if kind == BOTH:
                backward(model(*batches[rank][which]))
            else:
                backward(handed_out(model.parameters(), [gradient.clone() for gradient in gradients[rank][which]]))
        torch._foreach_div_([item.grad for item in model.parameters() if item.grad is not None], float(len(ranks)))
        chosen.step()
        chosen.zero_grad(set_to_none=True)
    return model.parameters()


if __name__ == "__main__":
    main()
