"""How numeric kernels are compiled: the same bits everywhere, without the GIL, once per machine.

fastmath stays off, so no sum is reordered and no multiply-add is fused behind our back: a kernel
gives the same bits on any CPU, and on any number of servers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.extending import register_jitable

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


def element(function: F) -> F:
    """Let kernels call a function of one element, inlined. To everybody else it stays plain Python."""
    return cast(F, register_jitable(error_model="numpy")(function))


def specialised(loop: F) -> F:
    """Compile a loop defined inside a function, around the elements that this function was given.

    Each combination of elements has files of its own on disk: two processes that compile different
    ones at the same time would else take the same name for both. The name carries a checksum of the
    files that the elements stand in, since numba notices only that the loop's own file changed; what
    an element calls stands in the same file as the element.
    """
    elements = [cell.cell_contents for cell in loop.__closure__ or ()]
    files = sorted({item.__code__.co_filename for item in elements})
    checksum = zlib.crc32(b"".join(Path(file).read_bytes() for file in files))
    loop.__qualname__ = "-".join((loop.__name__, *(item.__name__ for item in elements), f"{checksum:08x}"))
    return kernel(loop)


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory, not to be written. Kernels are compiled for either kind; what they only read is this one."""
    view = array.view()
    view.flags.writeable = False
    return view
