"""The random state of a worker's process, which snapshots keep by rank: torch's (CUDA's too), numpy's and Python's.

What is kept is the state as it was when a step had ended, before anything of the next one was drawn. The
job asks for it later, for a clock that is a step back perhaps; so it is taken after every step, which must be cheap.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch

from shoal.errors import SnapshotError
from shoal.runtime.worker import Worker
from shoal.storage.snapshot import read_manifest, read_random

MT19937_BYTES = 2500  # 624 words and a position, as they lie in memory


class State(msgspec.Struct, frozen=True):
    """All of it. python: random.getstate(). numpy: np.random.get_state(). cuda: by device, where CUDA is in use."""

    torch: bytes
    python: tuple[int, tuple[int, ...], float | None]
    numpy: tuple[str, bytes, int, int, float]
    cuda: tuple[bytes, ...] = ()


class Chance:
    """Remembers the random state of this process for a worker, step by step."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._numpy: Any = None  # its last state, with the memory that it was read from
        self._numpy_bytes = b""

    def remember(self, clock: int) -> None:
        """The state as it is now is what `clock` begins with, unless one is known for it already."""
        if not self._worker.remembers(clock):
            self._worker.remember(clock, self._taken())

    def resume(self) -> None:
        """Go on with the state of this rank in the snapshot that the job has just begun from, if it has one.

        SnapshotError if it is there and cannot be read.
        """
        source = self._worker.resumed_from
        if source is None or read_manifest(source).clock + 1 != self._worker.clock:
            return  # the job is past that: another life of this worker has drawn what it had to
        kept = read_random(source, self._worker.rank)
        if kept is None:
            return
        try:
            _restore(msgspec.msgpack.decode(kept, type=State))
        except (msgspec.MsgspecError, ValueError, RuntimeError, TypeError) as error:
            raise SnapshotError(
                f"the random state of worker {self._worker.rank} in {source} is none of this version of torch, numpy "
                f"and Python: {error}; resume with those that wrote it"
            ) from None

    def _taken(self) -> Callable[[], bytes]:
        """Taken now, encoded when it is asked for."""
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = tuple(torch.cuda.get_rng_state_all()) if in_use else ()
        return partial(_encoded, torch.get_rng_state(), random.getstate(), self._numpy_state(), cuda)

    def _numpy_state(self) -> Any:
        """np.random.get_state(); it takes long, so not where nothing was drawn since the last one."""
        generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if not isinstance(generator, np.random.MT19937):
            return np.random.get_state(legacy=True)  # noqa: NPY002 - a user's old generator is the one to keep
        found = ctypes.string_at(generator.ctypes.state_address, MT19937_BYTES)
        half_a_pair = self._numpy is not None and self._numpy[3]  # a normal number in store, which no memory here shows
        if found != self._numpy_bytes or half_a_pair:
            self._numpy, self._numpy_bytes = np.random.get_state(legacy=True), found  # noqa: NPY002
        return self._numpy


def _encoded(torch_state: torch.Tensor, python: Any, numpy_state: Any, cuda: tuple[torch.Tensor, ...]) -> bytes:
    name, key, *rest = numpy_state
    kept = (name, key.tobytes(), *rest)
    devices = tuple(item.numpy().tobytes() for item in cuda)
    return msgspec.msgpack.encode(State(torch_state.numpy().tobytes(), python, kept, devices))


def _restore(state: State) -> None:
    torch.set_rng_state(_tensor(state.torch))
    random.setstate(state.python)
    name, key, position, has_normal, normal = state.numpy
    np.random.set_state((name, np.frombuffer(key, np.uint32), position, has_normal, normal))  # noqa: NPY002
    for device, kept in enumerate(state.cuda[: torch.cuda.device_count() if torch.cuda.is_available() else 0]):
        torch.cuda.set_rng_state(_tensor(kept), device)


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
