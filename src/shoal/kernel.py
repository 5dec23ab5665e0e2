"""How numeric kernels are compiled: the same bits everywhere, without the GIL, once per machine.

fastmath stays off, so no sum is reordered and no multiply-add is fused behind our back: a kernel
gives the same bits on any CPU, and on any number of servers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]  # (elements,) contiguous
Bytes = npt.NDArray[np.uint8]  # (bytes,) contiguous
Encoded = npt.NDArray[Any]  # (elements,) as they travel: float32, or the bits of a half as uint16

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile a loop over one-dimensional arrays; compiled on first call, then kept on disk.

    Division by zero gives infinity or NaN, as in numpy. Inside, every literal that meets a float32
    must be one too: a plain 1.0 would widen the loop to float64.
    """
    return cast(F, njit(nogil=True, cache=True, error_model="numpy")(function))
