"""Parameters that fully_shard (FSDP2) has dealt over a process group: the group trains as one worker all the same.

The servers hold whole tensors. Each rank keeps a whole copy of every parameter in host memory, as an ordinary worker
does, and an Optimizer over those copies exchanges the rank's part of them. Before a step the shards of FSDP's
gradients, which are averaged already, are put together there; when fresh parameters have come, each rank takes its
shard out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.adapters.torch.groups import CODECS, Group, Parameters, groups_of, settings_of
from shoal.adapters.torch.optimizer import Optimizer
from shoal.errors import ConfigurationError
from shoal.optim import Rule
from shoal.runtime.worker import Worker


def is_sharded(params: Parameters) -> bool:
    """Whether this is a module with sharded parameters; other iterables are not looked into, for they are used up."""
    return isinstance(params, nn.Module) and any(map(_is_shard, params.parameters()))


class ShardedOptimizer(Optimizer):
    """An Optimizer of a module in shards; its param_groups hold the whole copies."""

    def __init__(self, worker: Worker, params: Parameters, rule: Rule, group: Any = None, **options: Any) -> None:
        """Every rank must come here. Raises ConfigurationError for parameters that are dealt otherwise than
        fully_shard does over one process group, and what Optimizer raises."""
        found = groups_of(params, rule, *(options.get(way, "") for way in CODECS))
        members = [item for part in found for item in part.members if item.parameter.requires_grad]
        self._shards: list[Any] = [item.parameter for item in members]  # DTensors
        meshes = {parameter.device_mesh for parameter in self._shards if _is_shard(parameter)}
        odd = [item.name for item in members if not _is_plain_shard(item.parameter)]
        if odd or len(meshes) != 1:
            raise ConfigurationError(
                f"parameter {(odd or [members[0].name])[0]!r} is not dealt by rows over the process group of others: "
                f"call fully_shard(...) on the whole module, with one mesh, of one dimension"
            )
        (mesh,) = meshes
        if group not in (None, mesh.get_group()):
            raise ConfigurationError(
                "group= is not the process group that fully_shard dealt the module over: leave it out"
            )
        self._part, self._parts = mesh.get_local_rank(), mesh.size()
        self._wholes = [_whole(parameter) for parameter in self._shards]
        wholes = {id(item.parameter): whole for item, whole in zip(members, self._wholes, strict=True)}
        groups = [_of_wholes(part, wholes) for part in found]
        super().__init__(worker, groups, rule, group=mesh.get_group(), averaged=True, **options)
        self._binding.spread = self._spread
        self._spread()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self._shards:
            if parameter.grad is not None and set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def _contribute(self, samples: int | None, begins: int = 0) -> None:
        for parameter, whole in zip(self._shards, self._wholes, strict=True):
            gradient = parameter.grad
            whole.grad = None if gradient is None else gradient.full_tensor().to("cpu", whole.dtype, copy=True)
        super()._contribute(samples, begins)
        for whole in self._wholes:
            whole.grad = None

    def _spread(self) -> None:
        """Fresh parameters are in the copies: take this rank's shards of them."""
        with torch.no_grad():
            for parameter, whole in zip(self._shards, self._wholes, strict=True):
                rows = whole.chunk(self._parts) if whole.dim() else (whole,)
                if self._part < len(rows):
                    parameter.to_local().copy_(rows[self._part])


def _is_shard(parameter: Tensor) -> bool:
    """Whether it is a DTensor; asked by name, for where the class lies depends on torch's version."""
    return any(kind.__name__ == "DTensor" for kind in type(parameter).__mro__)


def _is_plain_shard(parameter: Any) -> bool:
    return _is_shard(parameter) and parameter.device_mesh.ndim == 1 and parameter.placements[0].is_shard(0)


def _whole(parameter: Any) -> nn.Parameter:
    return nn.Parameter(parameter.detach().full_tensor().to("cpu", copy=True))


def _of_wholes(group: Group, wholes: dict[int, nn.Parameter]) -> dict[str, Any]:
    """The parameter group of the copies, with the names and settings of that of the shards."""
    members: Sequence[Any] = [item for item in group.members if id(item.parameter) in wholes]
    codecs = {way: getattr(members[0], way) for way in CODECS} if members else {}
    return {
        "params": [(item.name, wholes[id(item.parameter)]) for item in members],
        **settings_of(group.rule),
        **codecs,
    }
