"""The table of wire formats: how a block's elements travel, and how they join a sum.

A later codec (int8, top-k) is one more row of CODECS; nothing else knows the formats by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.codec import floats
from shoal.errors import ConfigurationError
from shoal.kernel import Encoded, Floats


@dataclass(frozen=True)
class Codec:
    """One wire format. All arrays are one-dimensional, contiguous and equally long.

    first(accumulator, encoded, weight): accumulator = weight * decoded
    add(accumulator, encoded, weight): accumulator += weight * decoded
    encode(encoded, values): encoded = values, rounded to nearest even
    """

    name: str
    item: npt.DTypeLike  # what encoded arrays hold; bfloat16 and float16 travel as their bits
    first: Callable[[Floats, Encoded, np.float32], None]
    add: Callable[[Floats, Encoded, np.float32], None]
    encode: Callable[[Encoded, Floats], None]

    def bytes_of(self, elements: int) -> int:
        """Bytes that `elements` elements take on the wire."""
        return elements * np.dtype(self.item).itemsize

    def warm(self) -> None:
        """Compile the kernels (or load them from disk), so that the first step does not wait for it."""
        values, encoded = np.zeros(1, np.float32), np.zeros(1, self.item)
        self.first(values, encoded, np.float32(1))
        self.add(values, encoded, np.float32(1))
        self.encode(encoded, values)


CODECS = {
    codec.name: codec
    for codec in (
        Codec("float32", np.float32, floats.first_float32, floats.add_float32, floats.encode_float32),
        Codec("bfloat16", np.uint16, floats.first_bfloat16, floats.add_bfloat16, floats.encode_bfloat16),
        Codec("float16", np.uint16, floats.first_float16, floats.add_float16, floats.encode_float16),
    )
}


def codec_for(dtype: str) -> Codec:
    """The codec of a tensor's wire dtype (ConfigurationError for one that Shoal does not carry)."""
    try:
        return CODECS[dtype]
    except KeyError:
        raise ConfigurationError(f"dtype {dtype!r} does not travel; known: {', '.join(CODECS)}") from None
