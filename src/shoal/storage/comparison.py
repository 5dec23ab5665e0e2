"""Two snapshots, tensor by tensor: how far apart parameters are, and whether the optimizer's state is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shoal.errors import SnapshotError
from shoal.storage import manifest as manifests
from shoal.storage.hashed import Progress, quietly
from shoal.storage.place import place
from shoal.storage.shard_file import PARAMETERS, Pieces
from shoal.storage.tensors import Array

CHUNK_ELEMENTS = 1 << 18

Verdict = Literal["equal", "differs", "missing in A", "missing in B", "another shape"]


@dataclass(frozen=True)
class Difference:
    """One tensor in both. changed: elements whose bits differ. largest: the largest absolute difference of an element;
    NaN if a NaN stands in one of them only, None where there is nothing to compare."""

    tensor: str
    verdict: Verdict
    elements: int
    changed: int = 0
    largest: float | None = None


@dataclass(frozen=True)
class Comparison:
    """versions: of A and B. state: by what the rule keeps ("m", "step", ...), tensors for which it differs."""

    versions: tuple[int, int]
    tensors: tuple[Difference, ...]
    state: dict[str, int]

    @property
    def same(self) -> bool:
        return not self.state_differs and all(item.verdict == "equal" for item in self.tensors)

    @property
    def state_differs(self) -> bool:
        return any(self.state.values())


def compare_snapshots(a: Path | str, b: Path | str, progress: Progress = quietly) -> Comparison:
    """Compare the float32 masters and states of two snapshots, whatever shards wrote them.

    Two arrays of one tensor are in memory at a time. progress: told bytes of A and B, their shards' in all.
    SnapshotError if one of them is no snapshot; digests are not checked.
    """
    of_a, of_b = manifests.read(place(a)), manifests.read(place(b))
    shapes_a = {item.name: item.shape for item in of_a.spec.tensors}
    shapes_b = {item.name: item.shape for item in of_b.spec.tensors}
    with Pieces(place(a), of_a.shard_files) as in_a, Pieces(place(b), of_b.shard_files) as in_b:
        both = _Both(in_a, in_b, progress)
        found = [both.parameters(name, shapes_a.get(name), shapes_b.get(name)) for name in {**shapes_a, **shapes_b}]
        return Comparison((of_a.version, of_b.version), tuple(found), both.states())


@dataclass(frozen=True)
class _Both:
    a: Pieces
    b: Pieces
    progress: Progress

    def parameters(self, name: str, shape_a: tuple[int, ...] | None, shape_b: tuple[int, ...] | None) -> Difference:
        shape = shape_a if shape_a is not None else shape_b
        elements = int(np.prod(shape or ()))
        if shape_a is None or shape_b is None:
            return Difference(name, "missing in A" if shape_a is None else "missing in B", elements)
        if shape_a != shape_b:
            return Difference(name, "another shape", elements)
        if elements == 0:
            return Difference(name, "equal", 0, 0, 0.0)
        one, other = self._pair(name, PARAMETERS)
        if not one.size == other.size == elements:
            raise SnapshotError(
                f"{name!r} has {one.size} and {other.size} of {elements} elements there: verify both snapshots"
            )
        changed, largest = _difference(one, other)
        return Difference(name, "differs" if changed else "equal", elements, changed, largest)

    def states(self) -> dict[str, int]:
        """Of each kind of state, for how many tensors it differs."""
        found: dict[str, int] = {}
        for name, what in dict.fromkeys([*self.a.kinds(), *self.b.kinds()]):
            if what != PARAMETERS:
                found[what] = found.get(what, 0) + (not self._equal(name, what))
        return found

    def _equal(self, name: str, what: str) -> bool:
        if self.a.size_bytes(name, what) != self.b.size_bytes(name, what):
            return False
        one, other = self._pair(name, what)
        return bool(np.array_equal(one.view(np.uint8), other.view(np.uint8)))

    def _pair(self, name: str, what: str) -> tuple[Array, Array]:
        one, other = self.a.whole(name, what), self.b.whole(name, what)
        self.progress(one.nbytes + other.nbytes)
        return one, other


def _difference(one: Array, other: Array) -> tuple[int, float]:
    """(elements,) float32 both: how many differ in their bits, and the largest absolute difference."""
    counted = [(int(np.count_nonzero(bits)), far) for bits, far in _chunks(one, other)]
    return sum(count for count, _ in counted), float(np.max([far for _, far in counted]))  # NaN stays NaN


def _chunks(one: Array, other: Array) -> Iterator[tuple[Array, float]]:
    for start in range(0, one.size, CHUNK_ELEMENTS):
        a, b = one[start : start + CHUNK_ELEMENTS], other[start : start + CHUNK_ELEMENTS]
        differ = a.view(np.uint32) != b.view(np.uint32)
        with np.errstate(invalid="ignore"):
            far = np.abs(a[differ].astype(np.float64) - b[differ])
        yield differ, float(far.max(initial=0.0))
