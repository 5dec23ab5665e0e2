"""The safetensors format, read and written piece by piece: never more than one array in memory at once.

A file is 8 bytes for the header's length, the header (JSON: names, dtypes, shapes, places), then the arrays
without gaps. The safetensors library reads what is written here; it is not used because it would hold a
second copy of everything while it writes, and knows no file but a local one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt

HEADER_BYTES_MAX = 100_000_000  # as in the safetensors library
_LENGTH_BYTES = 8

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U8": np.dtype(np.uint8),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """An array in a file. start, stop: its bytes within the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


def in_order(arrays: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> list[Entry]:
    """Where arrays of these names, dtypes and shapes lie: large items first, so that each is aligned.

    start and stop count from the end of the header.
    """
    entries, position = [], 0
    for name, dtype, shape in sorted(arrays, key=lambda item: -item[1].itemsize):
        stop = position + math.prod(shape) * dtype.itemsize
        entries.append(Entry(name, dtype, shape, position, stop))
        position = stop
    return entries


def header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """What a file begins with. entries: of `in_order`, whose bytes follow in that order."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    for entry in entries:
        place = {"dtype": _CODES[entry.dtype], "shape": entry.shape, "data_offsets": (entry.start, entry.stop)}
        fields[entry.name] = place
    text = msgspec.json.encode(fields)
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def read_header(read_into: Callable[[memoryview], None], size_bytes: int) -> list[Entry]:
    """The entries of a file of `size_bytes`, in the order of their bytes (ValueError if it is none of Shoal's).

    read_into fills its argument with the next bytes of the file.
    """
    length = bytearray(_LENGTH_BYTES)
    if size_bytes < _LENGTH_BYTES:
        raise ValueError(f"{size_bytes} bytes hold no header")
    read_into(memoryview(length))
    count = int.from_bytes(length, "little")
    if count > min(HEADER_BYTES_MAX, size_bytes - _LENGTH_BYTES):
        raise ValueError(f"its header claims {count:,} bytes")
    text = bytearray(count)
    read_into(memoryview(text))
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        fields.pop("__metadata__", None)
        entries = sorted(
            (_entry(name, msgspec.convert(field, _Field)) for name, field in fields.items()),
            key=lambda entry: (entry.start, entry.stop),
        )
    except (msgspec.MsgspecError, KeyError) as error:
        raise ValueError(f"its header is not of safetensors as Shoal writes them: {error}") from None
    position = 0
    for entry in entries:
        if entry.start != position or entry.stop - position != math.prod(entry.shape) * entry.dtype.itemsize:
            raise ValueError(f"the bytes of {entry.name!r} are not where they should be")
        position = entry.stop
    first = _LENGTH_BYTES + count
    if first + position != size_bytes:
        raise ValueError(f"its arrays have {position:,} bytes, the file {size_bytes - first:,}")
    return [Entry(item.name, item.dtype, item.shape, first + item.start, first + item.stop) for item in entries]


def as_bytes(array: Array) -> memoryview:
    """The bytes of an array; no copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class _Field(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _entry(name: str, field: _Field) -> Entry:
    return Entry(name, DTYPES[field.dtype], field.shape, *field.data_offsets)
