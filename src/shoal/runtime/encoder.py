"""Gradients on their way out: encoded block by block, and what a codec loses kept for the next step.

Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847, algorithm 2): p = g + e is encoded in place
of the gradient g, and what the code C(p) lacks becomes the next residual, e = p - C(p). A contribution that
no commit took lost all of it: then e = p. A step that is taken back, or was void, never was: e stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shoal.codec.codec import FLOAT32, PIECE_ELEMENTS, Codec, chance_of, codec_for, encode, push_codec
from shoal.codec.lowrank import LowRank
from shoal.codec.packed import Packed, Recorded
from shoal.core.shared import lay_out_packed
from shoal.kernel import Encoded, Floats, read_only
from shoal.placement import blocks_of_tensor, cut
from shoal.runtime.residuals import Residuals
from shoal.vocabulary import Block, TableSpec

Bytes = npt.NDArray[np.uint8]


class Encoder:
    """The encoded gradients of one worker, of a table that packs some (codec.packs).

    memory: (bytes,) where servers on this host read them; None: memory of its own. descriptor: of memory in which
    residuals outlive this process (see residuals.py). mine: the blocks that are encoded, all unless given. One thread
    a tensor, and the ends of steps on any.
    """

    def __init__(
        self,
        spec: TableSpec,
        memory: memoryview | None,
        descriptor: int | None = None,
        mine: frozenset[int] | None = None,
    ) -> None:
        self._spec = spec
        self._mine = frozenset(range(len(cut(spec)))) if mine is None else mine
        self._slices, size_bytes = lay_out_packed(spec)
        self._memory = memoryview(bytearray(size_bytes)) if memory is None else memory
        self._names = [_kept_of(spec, tensor) for tensor in range(len(spec.tensors))]
        kept = {name: elements for names in self._names for name, elements in names.items()}
        self._residuals = Residuals(kept, descriptor) if kept else None
        self._pending: set[int] = set()  # tensors whose residual is written, if the step that is under way counts
        self._multiplier = 1.0  # of the gradients that are encoded
        self._sealed = False  # the step is over, and whether it counts not known

    # --- steps ------------------------------------------------------------------------------------

    def adopt(self, used: tuple[int, int]) -> bool:
        """Begin with the residual that a process before this one left, if any; used: see Residuals."""
        found = self._residuals is not None and self._residuals.adopt(used)
        self._multiplier = self._residuals.multiplier if self._residuals is not None else 1.0
        return found

    def load(self, arrays: dict[str, Floats]) -> None:
        """Begin with the residual of a snapshot."""
        if self._residuals is not None:
            self._residuals.load(arrays)

    def encode(
        self, tensor: int, gradient: Bytes, worker: int, clock: int, done: Callable[[int], None] = lambda _: None
    ) -> bool:
        """Take in a gradient: its bytes, row-major, in the parameter's dtype; returns whether all of it is finite.

        worker, clock: what chance depends on. done: told of each block as soon as it is encoded.
        """
        item = self._spec.tensors[tensor]
        codec, plain = push_codec(item), codec_for(item.dtype)
        values, finite = gradient.view(plain.item), True
        if _fed(codec) and self._residuals is not None:
            self._residuals.begin()
            self._pending.add(tensor)
        scratch = np.empty(min(PIECE_ELEMENTS, values.size), np.float32)
        for index in self._blocks(tensor):
            block, encoded = cut(self._spec)[index], np.frombuffer(self.block(index), codec.item)
            chance = chance_of(worker, clock, index)
            if isinstance(codec, LowRank):
                finite &= plain.finite(values[block.start : block.stop])
                self._encode_whole(tensor, codec, values, block, encoded)
                done(index)
                continue
            assert isinstance(codec, Codec | Recorded)
            for start in range(0, block.elements, PIECE_ELEMENTS):
                stop = min(start + PIECE_ELEMENTS, block.elements)
                place, target = slice(block.start + start, block.start + stop), encoded[_span(codec, start, stop)]
                finite &= plain.finite(values[place])  # brings it into the cache as well
                if codec is plain:
                    target[:] = values[place]
                    continue
                meant = self._meant(tensor, values, place, scratch)
                encode(codec, target, meant, chance + start)
                if isinstance(codec, Packed) and codec.feedback:
                    codec.add(meant, read_only(target), np.float32(-1))  # it is this step's residual already
            done(index)
        return finite

    def block(self, index: int) -> memoryview:
        """The bytes of a block, as encoded last."""
        return self._memory[self._slices[index]]

    def restart(self) -> None:
        """What was encoded for this step never was."""
        self._pending.clear()
        if self._residuals is not None:
            self._residuals.drop()

    def seal(self, incarnation: int, clock: int) -> None:
        """All of the step is encoded, and is this contribution from here on."""
        if self._residuals is None:
            return
        self._residuals.begin()
        for name in [name for tensor, names in enumerate(self._names) if tensor not in self._pending for name in names]:
            base, target = self._residuals.base(name), self._residuals.next(name)
            if base is None:
                target[:] = 0
            else:
                FLOAT32.first(target, read_only(base), self._ratio)
        self._residuals.seal(incarnation, clock, self._multiplier)
        self._sealed = True

    def end(self, committed: bool) -> None:
        """The step is over; committed: what was sealed is in the log."""
        if self._residuals is not None and self._sealed:
            if not committed:
                self._residuals.unseal()
                for tensor in self._pending:
                    self._add_back(tensor, self._residuals.next(self._spec.tensors[tensor].name))
                self._residuals.reseal()
            self._residuals.advance()
        self._pending.clear()
        self._sealed = False

    def rescale(self, multiplier: float) -> bool:
        """The gradients of this step are to be multiplied by this. True: what was encoded has to be encoded again, for
        the residuals in it were of gradients scaled otherwise."""
        if multiplier == self._multiplier:
            return False
        self._multiplier = multiplier
        return bool(self._pending) and self._residuals is not None and not self._residuals.empty

    # --- snapshots: from other threads ---------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """Whether there is anything that a snapshot should have."""
        return self._residuals is not None

    def pin(self, used: tuple[int, int]) -> int | None:
        """Have what was lost up to this contribution (incarnation, clock) stay until it is taken; what to take, None:
        there is nothing, or not any more."""
        return None if self._residuals is None else self._residuals.pin(used)

    def take(self, pinned: int) -> dict[str, Floats]:
        """A copy of what was pinned."""
        assert self._residuals is not None, "it was pinned"
        return self._residuals.take(pinned)

    # --- helpers ------------------------------------------------------------------------------------

    @property
    def _ratio(self) -> np.float32:
        """What residuals are multiplied by, to be of gradients that are scaled as those that are encoded."""
        assert self._residuals is not None
        return np.float32(self._residuals.multiplier / self._multiplier)

    def _meant(self, tensor: int, values: Encoded, place: slice, scratch: Floats) -> Floats:
        """A piece of what is to be encoded, in float32: where its residual goes, if it has one."""
        item = self._spec.tensors[tensor]
        codec, plain, part = push_codec(item), codec_for(item.dtype), read_only(values[place])
        if self._residuals is None or not _fed(codec):
            if plain is FLOAT32:
                return values[place]
            meant = scratch[: place.stop - place.start]
            plain.first(meant, part, np.float32(1))
            return meant
        meant, base = self._residuals.next(item.name)[place], self._residuals.base(item.name)
        plain.first(meant, part, np.float32(1))
        if base is not None:
            FLOAT32.add(meant, read_only(base[place]), self._ratio)
        return meant

    def _encode_whole(
        self, tensor: int, codec: LowRank, values: Encoded, block: Block, encoded: npt.NDArray[np.uint8]
    ) -> None:
        """A block as one matrix, from where the power iteration was."""
        assert self._residuals is not None
        meant = self._meant(tensor, values, slice(block.start, block.stop), np.empty(0, np.float32))
        name = _start_of(self._spec, block)
        base, column = self._residuals.base(name), block.start % codec.columns
        start = np.zeros(codec.rank * codec.columns, np.float32) if base is None else base
        self._residuals.next(name)[:] = codec.encode_from(encoded, meant, column, start, block.index)
        codec.add(meant, read_only(encoded), np.float32(-1))

    def _blocks(self, tensor: int) -> list[int]:
        return [index for index in blocks_of_tensor(self._spec)[tensor] if index in self._mine]

    def _add_back(self, tensor: int, residual: Floats) -> None:
        codec = push_codec(self._spec.tensors[tensor])
        for index in self._blocks(tensor):
            block = cut(self._spec)[index]
            encoded = read_only(np.frombuffer(self.block(index), codec.item))
            codec.add(residual[block.start : block.stop], encoded, np.float32(1))


def _kept_of(spec: TableSpec, tensor: int) -> dict[str, int]:
    """What is kept of a tensor from step to step, by name, and how many float32 each has: what its codec lost, and by
    block where a power iteration was."""
    item = spec.tensors[tensor]
    codec = push_codec(item)
    blocks = [cut(spec)[index] for index in blocks_of_tensor(spec)[tensor]] if isinstance(codec, LowRank) else []
    starts = {_start_of(spec, block): codec.rank * codec.columns for block in blocks if isinstance(codec, LowRank)}
    return {item.name: item.elements, **starts} if _fed(codec) else {}


def _start_of(spec: TableSpec, block: Block) -> str:
    return f"{spec.tensors[block.tensor].name}|{block.start}"


def _fed(codec: Codec | Packed) -> bool:
    """Whether it needs error feedback."""
    return isinstance(codec, Packed) and codec.feedback


def _span(codec: Codec | Recorded, start: int, stop: int) -> slice:
    """Where elements start..stop of a block are encoded."""
    return slice(codec.offset(start), codec.offset(stop))
