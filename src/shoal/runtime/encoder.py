"""Gradients on their way out: encoded block by block, and what a codec loses kept for the next step.

Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847, algorithm 2): p = g + e is encoded in place
of the gradient g, and what the code C(p) lacks becomes the next residual, e = p - C(p). A contribution that
no commit took lost all of it: then e = p. A step that is taken back never was: e stays as it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.codec.codec import FLOAT32, Codec, chance_of, codec_for, encode, push_codec
from shoal.codec.packed import Packed
from shoal.core.shared import lay_out_packed
from shoal.kernel import Encoded, Floats, read_only
from shoal.placement import blocks_of_tensor, cut
from shoal.vocabulary import TableSpec

Bytes = npt.NDArray[np.uint8]


class Encoder:
    """The encoded gradients of one worker, of a table that packs some (codec.packs).

    memory: (bytes,) where servers on this host read them; None: memory of its own. One thread a tensor, and the
    ends of steps on any.
    """

    def __init__(self, spec: TableSpec, memory: memoryview | None) -> None:
        self._spec = spec
        self._slices, size_bytes = lay_out_packed(spec)
        self._memory = memoryview(bytearray(size_bytes)) if memory is None else memory
        self._residuals: dict[int, Floats] = {}  # by tensor: what its codec lost so far
        self._pending: dict[int, Floats] = {}  # by tensor: the residual if the step that is under way counts
        self._multiplier = 1.0  # of the gradients that the residuals are of

    def encode(self, tensor: int, gradient: Bytes, worker: int, clock: int) -> None:
        """Take in a gradient: its bytes, row-major, in the parameter's dtype. worker, clock: what chance depends on."""
        item = self._spec.tensors[tensor]
        codec, plain = push_codec(item), codec_for(item.dtype)
        values = gradient.view(plain.item)
        if isinstance(codec, Packed) and codec.feedback:
            values = self._with_residual(tensor, values, plain)
        elif codec is not plain and plain is not FLOAT32:
            values = _widened(values, plain)
        for index in blocks_of_tensor(self._spec)[tensor]:
            block = cut(self._spec)[index]
            part, target = values[block.start : block.stop], np.frombuffer(self.block(index), codec.item)
            if codec is plain:
                target[:] = part
                continue
            encode(codec, target, part, chance_of(worker, clock, index))
            if isinstance(codec, Packed) and codec.feedback:
                codec.add(part, read_only(target), np.float32(-1))  # values are this step's residual already

    def block(self, index: int) -> memoryview:
        """The bytes of a block, as encoded last."""
        return self._memory[self._slices[index]]

    def restart(self) -> None:
        """What was encoded for this step never was."""
        self._pending.clear()

    def end(self, committed: bool) -> None:
        """The step is over; committed: what was encoded is in the log."""
        for tensor, residual in self._pending.items():
            if not committed:
                self._add_back(tensor, residual)
            self._residuals[tensor] = residual
        self._pending.clear()

    def rescale(self, multiplier: float) -> bool:
        """The gradients of this step are to be multiplied by this. True: what was encoded has to be encoded again, for
        the residuals in it were of gradients scaled otherwise."""
        if multiplier == self._multiplier:
            return False
        ratio = np.float32(self._multiplier / multiplier)
        self._multiplier = multiplier
        for residual in self._residuals.values():
            residual *= ratio
        return not self._residuals.keys().isdisjoint(self._pending)

    def _with_residual(self, tensor: int, values: Encoded, plain: Codec) -> Floats:
        found = _widened(values, plain)
        if tensor in self._residuals:
            found += self._residuals[tensor]
        self._pending[tensor] = found
        return found

    def _add_back(self, tensor: int, residual: Floats) -> None:
        codec = push_codec(self._spec.tensors[tensor])
        for index in blocks_of_tensor(self._spec)[tensor]:
            block = cut(self._spec)[index]
            encoded = read_only(np.frombuffer(self.block(index), codec.item))
            codec.add(residual[block.start : block.stop], encoded, np.float32(1))


def _widened(values: Encoded, plain: Codec) -> Floats:
    """A copy in float32."""
    found = np.empty(values.size, np.float32)
    plain.first(found, read_only(values), np.float32(1))
    return found
