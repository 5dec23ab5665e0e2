"""A process group that trains as one worker: what its ranks say to each other, over links that are near.

Hierarchical synchronisation: the gradients of all ranks are reduced so that each rank has the mean of its part (a
reduce-scatter over blocks), it pushes that part and is given that part, and the parts are gathered on all ranks. So the
servers receive and send what they would with one ordinary worker, whatever the number of ranks, and the ranks' links to
them carry equal shares of it. BytePS does so within a machine (Jiang et al., OSDI 2020, section 3); the parts are
placement.owned(table, part, parts).

Every rank makes the same calls in the same order, or all of them wait for ever: what only one rank can know (samples,
an overflow, a gradient that is there or not) they agree on before they act on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from shoal.adapters.torch.groups import Named, Parameters
from shoal.errors import ConfigurationError, JobError
from shoal.placement import cut, owned
from shoal.runtime.worker import Worker
from shoal.vocabulary import Block, TableSpec

KNOWN_WITHIN_SECONDS = 3.0  # the coordinator declares a rank dead whose connection stays broken for grace_ms


def process_group_of(params: Parameters, group: Any) -> tuple[Parameters, dist.ProcessGroup | None, bool]:
    """The module itself, the process group that it trains in (None: alone), and whether that averages gradients.

    A DistributedDataParallel module brings its group along, and averages. Raises ConfigurationError for what is no
    process group, and for another one than the module's.
    """
    if isinstance(params, DistributedDataParallel):
        if group not in (None, params.process_group):
            raise ConfigurationError(
                "group= is not the process group of the DistributedDataParallel module: leave it out"
            )
        return params.module, _several(params.process_group), True
    if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(params).__mro__):  # importing it takes long
        raise ConfigurationError(
            "FullyShardedDataParallel flattens parameters, and a table takes them as they are: use its successor, "
            "torch.distributed.fsdp.fully_shard(model), or DistributedDataParallel (docs/groups.md)"
        )
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ConfigurationError(
            f"group={group!r} is no process group: call torch.distributed.init_process_group(...), then give "
            f"group=torch.distributed.group.WORLD"
        )
    return params, _several(group), False


def _several(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    return group if group is not None and group.size() > 1 else None


class Ranks:
    """The ranks of one group, and the parameters whose gradients they share."""

    def __init__(self, worker: Worker, group: dist.ProcessGroup, parameters: Sequence[Tensor]) -> None:
        self._worker, self.group, self.parameters = worker, group, parameters
        devices = {parameter.device for parameter in parameters}
        if len(devices) > 1:
            raise ConfigurationError(
                f"in a group a rank's model lies on one device, not on {sorted(map(str, devices))}"
            )
        (self.device,) = devices
        if "gloo" in dist.get_backend(group):
            self.device = torch.device("cpu")
        elif self.device.type == "cpu":  # NCCL has no links between hosts' memories
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.part, self.parts = dist.get_rank(group), dist.get_world_size(group)

    def agree(self, samples: int, void: bool) -> tuple[int, int, list[bool]]:
        """Samples of all ranks, how many overflowed, and by parameter whether any has a gradient."""
        mine = [float(samples), float(void), *(float(item.grad is not None) for item in self.parameters)]
        told = torch.tensor(mine, dtype=torch.float64, device=self.device)
        self._add_up(told)
        total, voids, *present = told.tolist()
        return int(total), int(voids), [count > 0 for count in present]

    def any(self, fact: bool) -> bool:
        """Whether it holds on any rank."""
        told = torch.tensor([float(fact)], device=self.device)
        self._add_up(told)
        return bool(told.item())

    def reduce(self, values: Tensor, to: int) -> None:
        """Add up what all ranks have there, on one of them; elsewhere it means nothing afterwards."""
        with self._together():
            dist.reduce(values, dist.get_global_rank(self.group, to), group=self.group)

    def broadcast(self, values: Tensor, source: int) -> None:
        """Bring what one rank has there to all."""
        with self._together():
            dist.broadcast(values, dist.get_global_rank(self.group, source), group=self.group)

    def average(self) -> None:
        """Leave in the gradients of all ranks their mean; a parameter without one on some counts as zero there."""
        _, _, present = self.agree(1, False)
        for parameter, there in zip(self.parameters, present, strict=True):
            if not there:
                continue
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            meant = gradient.to(self.device, torch.float32, copy=True).contiguous()
            self._add_up(meant)
            parameter.grad = gradient.copy_(meant.div_(self.parts))

    def _add_up(self, values: Tensor) -> None:
        with self._together():
            dist.all_reduce(values, group=self.group)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Where a rank that is gone shows first: the error is Shoal's, and says who it is where the job knows it."""
        try:
            yield
        except RuntimeError as error:  # torch's for everything; gloo's say no more than that a peer is gone
            known = self._worker.failure_within(KNOWN_WITHIN_SECONDS)
            raise known or JobError(
                f"worker {self._worker.rank} cannot go on without all ranks of its group, and one of them does not "
                f"answer: {error}; start all of them again (`shoal run` does, where one was killed)"
            ) from error


class Collective:
    """A group, and the part of a table that each of its ranks exchanges with the servers."""

    def __init__(self, worker: Worker, group: dist.ProcessGroup, spec: TableSpec, members: Sequence[Named]) -> None:
        """Learn who they are. Every rank must come here."""
        self.ranks = Ranks(worker, group, [item.parameter for item in members])
        self._reduction, self._parameters = spec.reduction, self.ranks.parameters
        identities: list[Any] = [None] * self.ranks.parts
        dist.all_gather_object(identities, (worker.rank, worker.incarnation), group=group)
        self.identities: tuple[tuple[int, int], ...] = tuple((rank, incarnation) for rank, incarnation in identities)
        blocks, parts = cut(spec), self.ranks.parts
        self._blocks = [[blocks[index] for index in owned(spec, part, parts)] for part in range(parts)]
        size = max(map(_elements, self._blocks))
        self._buffer = torch.empty(size, dtype=torch.float32, device=self.ranks.device)
        self.tensors = frozenset(block.tensor for block in self._blocks[self.ranks.part])  # that this one has a part of

    def reduce(self, samples: int, multiplier: float, void: bool, averaged: bool) -> bool:
        """Leave in this rank's part of the gradients the mean of all ranks', each times its multiplier and weighed by
        its samples; what the other parts hold then means nothing. averaged: they are the mean already.

        A parameter that has a gradient on some ranks counts as zero on the others. Returns False, and leaves all as
        it is, where there is nothing to contribute: a rank overflowed (void), or none has a gradient or samples.
        """
        total, voids, present = self.ranks.agree(samples, void)
        if voids or not any(present) or total <= 0:
            return False
        for parameter, there in zip(self._parameters, present, strict=True):
            if there and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        adds = self._reduction == "sum"
        if averaged:
            factor = multiplier * self.ranks.parts if adds else multiplier
            for parameter in self._parameters:
                if parameter.grad is not None and factor != 1.0:
                    parameter.grad.mul_(factor)
            return True
        factor = multiplier if adds else multiplier * samples / total
        for part, blocks in enumerate(self._blocks):
            for block, place in self._places(blocks):
                gradient = self._parameters[block.tensor].grad
                place.zero_()
                if gradient is not None and samples:
                    place.copy_(_run(gradient, block)).mul_(factor)
            self.ranks.reduce(self._buffer[: _elements(blocks)], part)
            if part == self.ranks.part:
                for block, place in self._places(blocks):
                    gradient = self._parameters[block.tensor].grad
                    if gradient is not None:
                        _write(gradient, block, place)
        return True

    def gather(self) -> None:
        """Bring every rank's part of the parameters to all ranks. They are equal to the bit afterwards."""
        with torch.no_grad():
            for part, blocks in enumerate(self._blocks):
                if part == self.ranks.part:
                    for block, place in self._places(blocks):
                        place.copy_(_run(self._parameters[block.tensor].detach(), block))
                self.ranks.broadcast(self._buffer[: _elements(blocks)], part)
                if part != self.ranks.part:
                    for block, place in self._places(blocks):
                        _write(self._parameters[block.tensor].detach(), block, place)

    # --- helpers ----------------------------------------------------------------------------------

    def _places(self, blocks: Sequence[Block]) -> Iterator[tuple[Block, Tensor]]:
        """Each block of a part, and where it lies in the buffer."""
        position = 0
        for block in blocks:
            yield block, self._buffer[position : position + block.elements]
            position += block.elements


def _elements(blocks: Sequence[Block]) -> int:
    return sum(block.elements for block in blocks)


def _run(tensor: Tensor, block: Block) -> Tensor:
    """The block's elements, row-major: a view where the tensor lies so, else a copy."""
    return tensor.reshape(-1)[block.start : block.stop]


def _write(tensor: Tensor, block: Block, values: Tensor) -> None:
    if tensor.is_contiguous():
        tensor.view(-1)[block.start : block.stop].copy_(values)
        return
    flat = tensor.reshape(-1)
    flat[block.start : block.stop] = values.to(flat.device, flat.dtype)
    tensor.copy_(flat.view(tensor.shape))
