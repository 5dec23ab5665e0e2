"""The tables of wire formats: how a block's elements travel, and how they join a sum.

Parameters travel in one of CODECS, element by element; gradients, and what changes in parameters, in one of those, or
in one of PACKED, which lose something. Gradients of matrices travel as products of narrow ones, too (RANKS). A further
codec is one more row; nothing else knows the formats by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from shoal.codec import arrays, floats, streamed
from shoal.codec.arrays import Narrow, Widen
from shoal.codec.lowrank import RANKS, low_rank_of
from shoal.codec.packed import Packed, Recorded
from shoal.codec.quantised import QUANTISED
from shoal.codec.sparse import SPARSE
from shoal.errors import ConfigurationError
from shoal.kernel import Encoded, Floats, read_only
from shoal.vocabulary import Block, TableSpec, TensorSpec

PIECE_ELEMENTS = 1 << 16  # worked on at a time: they stay in the core's cache. Whole records of every codec


@dataclass(frozen=True)
class Codec:
    """One wire format. All arrays are one-dimensional, contiguous and equally long.

    widen(encoded) and narrow(value) turn one element into float32 and back, rounded to nearest even;
    every kernel is made from these two.
    """

    name: str
    item: npt.DTypeLike  # what encoded arrays hold; bfloat16 and float16 travel as their bits
    infinity: int  # its bits: above all numbers, below NaN
    widen: Widen
    narrow: Narrow

    packed: ClassVar[None] = None

    @property
    def published(self) -> npt.DTypeLike:
        """What parameters are narrowed to in a pass."""
        return self.item

    @cached_property
    def first(self) -> Callable[[Floats, Encoded, np.float32], None]:
        """first(accumulator, encoded, weight): accumulator = weight * widened."""
        return arrays.first_of(self.widen)

    @cached_property
    def add(self) -> Callable[[Floats, Encoded, np.float32], None]:
        """add(accumulator, encoded, weight): accumulator += weight * widened."""
        return arrays.add_of(self.widen)

    @cached_property
    def encode(self) -> Callable[[Encoded, Floats], None]:
        """encode(encoded, values): encoded = values, rounded to nearest even."""
        return arrays.encode_of(self.narrow)

    def finite(self, values: Encoded) -> bool:
        """Whether all of these encoded elements are."""
        wide = np.dtype(self.item).itemsize == 4
        bits: Encoded = read_only(values).view(np.uint32 if wide else np.uint16)
        return int(arrays.largest_bits32(bits) if wide else arrays.largest_bits16(bits)) < self.infinity

    def copy_finite(self, destination: Encoded, source: Encoded, past_caches: bool = False) -> bool:
        """Copy encoded elements and tell, in the same pass, whether all of them are finite.

        Both (elements,) of `item`, or of unsigned integers as wide. past_caches: so much is copied before
        anyone reads it that the caches would not hold it.
        """
        wide = np.dtype(self.item).itemsize == 4
        bits = np.uint32 if wide else np.uint16
        into: Encoded = destination.view(bits)
        out_of: Encoded = read_only(source).view(bits)
        largest = 0
        if past_caches and streamed.aligned(into):
            lines = streamed.whole_lines(into)
            largest = int(streamed.copy_lines(into[:lines], out_of[:lines]))
            into, out_of = into[lines:], out_of[lines:]
        rest = arrays.copy_bits32(into, out_of) if wide else arrays.copy_bits16(into, out_of)
        return max(largest, int(rest)) < self.infinity

    def bytes_of(self, elements: int) -> int:
        """Bytes that `elements` elements take on the wire."""
        return elements * np.dtype(self.item).itemsize

    def offset(self, start: int) -> int:
        """Where element `start` of a block is, in elements of what it is encoded as."""
        return start

    def warm(self) -> None:
        """Compile a server's kernels (or load them from disk), so that the first step does not wait for it."""
        values, encoded = np.zeros(1, np.float32), np.zeros(1, self.item)
        self.first(values, read_only(encoded), np.float32(1))
        self.add(values, read_only(encoded), np.float32(1))
        self.encode(encoded, values)


CODECS = {
    codec.name: codec
    for codec in (
        Codec("float32", np.float32, 0x7F800000, floats.widen_float32, floats.narrow_float32),
        Codec("bfloat16", np.uint16, 0x7F80, floats.widen_bfloat16, floats.narrow_bfloat16),
        Codec("float16", np.uint16, 0x7C00, floats.widen_float16, floats.narrow_float16),
    )
}


@dataclass(frozen=True)
class Mixed:
    """How a pass is made whose gradient comes in one format and whose parameters leave in another.

    A packed gradient is unpacked first, a piece at a time, and is float32 in the pass.
    """

    gradient: Codec | Packed
    parameter: Codec

    @property
    def item(self) -> npt.DTypeLike:
        return self.gradient.item

    @property
    def published(self) -> npt.DTypeLike:
        return self.parameter.item

    @property
    def packed(self) -> Packed | None:
        return self.gradient if isinstance(self.gradient, Packed) else None

    def bytes_of(self, elements: int) -> int:
        return self.gradient.bytes_of(elements)

    @property
    def widen(self) -> Widen:
        return floats.widen_float32 if isinstance(self.gradient, Packed) else self.gradient.widen

    @property
    def first(self) -> Callable[[Floats, Encoded, np.float32], None]:
        return self.gradient.first

    @property
    def add(self) -> Callable[[Floats, Encoded, np.float32], None]:
        return self.gradient.add

    @property
    def narrow(self) -> Narrow:
        return self.parameter.narrow


def mixed(gradient: Codec | Packed, parameter: Codec) -> Codec | Mixed:
    """The format of such a pass."""
    return parameter if gradient is parameter else Mixed(gradient, parameter)


def push_codec(tensor: TensorSpec) -> Codec | Packed:
    """The codec of a tensor's gradients (ConfigurationError for one that nobody knows)."""
    if tensor.push in RANKS:
        return low_rank_of(tensor) or codec_for(tensor.dtype)
    return PACKED[tensor.push] if tensor.push in PACKED else codec_for(tensor.push or tensor.dtype)


def pull_codec(tensor: TensorSpec) -> Codec | Recorded | None:
    """The codec of what changes in a tensor's parameters; None: they come as they are (ConfigurationError for a codec
    that nobody knows)."""
    if not tensor.pull:
        return None
    return PACKED[tensor.pull] if tensor.pull in PACKED else codec_for(tensor.pull)


def encode(codec: Codec | Packed, encoded: Encoded, values: Floats, seed: int) -> None:
    """encoded = values, by either kind. seed: see chance_of."""
    if isinstance(codec, Codec):
        codec.encode(encoded, values)
    else:
        codec.encode(encoded, values, seed)


def chance_of(who: int, clock: int, block: int) -> int:
    """The seed of what is rounded by chance: it depends on these alone, so the same run gives the same bits."""
    return who * 0x9E3779B1 + clock * 0x85EBCA77 + block * 0xC2B2AE3D


def push_bytes(spec: TableSpec, block: Block) -> int:
    """Bytes that a gradient's block takes on the wire."""
    return push_codec(spec.tensors[block.tensor]).bytes_of(block.elements)


def packs(spec: TableSpec) -> bool:
    """Whether some gradient travels otherwise than its parameter does."""
    return any(tensor.push not in ("", tensor.dtype) for tensor in spec.tensors)


PACKED: dict[str, Recorded] = {codec.name: codec for codec in (*QUANTISED, *SPARSE)}


def pulls(spec: TableSpec) -> bool:
    """Whether workers hold a copy of some parameters, and are sent what changes in it."""
    return any(tensor.pull for tensor in spec.tensors)


FLOAT32 = CODECS["float32"]
PUSHES = (*CODECS, *PACKED, *RANKS)  # names of all codecs that gradients may travel in
PULLS = tuple(name for name in (*CODECS, *PACKED) if name != FLOAT32.name)  # and changes of parameters


def codec_for(dtype: str) -> Codec:
    """The codec of a tensor's wire dtype (ConfigurationError for one that Shoal does not carry)."""
    try:
        return CODECS[dtype]
    except KeyError:
        raise ConfigurationError(f"dtype {dtype!r} does not travel; known: {', '.join(CODECS)}") from None
