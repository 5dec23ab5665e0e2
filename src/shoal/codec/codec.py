"""The table of wire formats: how a block's elements travel, and how they join a sum.

A later codec (int8, top-k) is one more row of CODECS; nothing else knows the formats by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shoal.codec import arrays, floats, streamed
from shoal.codec.arrays import Narrow, Widen
from shoal.errors import ConfigurationError
from shoal.kernel import Encoded, Floats, read_only


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


def codec_for(dtype: str) -> Codec:
    """The codec of a tensor's wire dtype (ConfigurationError for one that Shoal does not carry)."""
    try:
        return CODECS[dtype]
    except KeyError:
        raise ConfigurationError(f"dtype {dtype!r} does not travel; known: {', '.join(CODECS)}") from None
