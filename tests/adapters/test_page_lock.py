"""Memory that CUDA devices copy to directly: locked while it is used, and let go before it is unmapped.

The runtime here is a stand-in: what a device does with such memory can only be seen on one.
"""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch

from shoal.adapters.torch.tensors import PageLock, tensor_of


class Runtime:
    """cudart as far as page locks need it."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:  # noqa: N802 (CUDA's own name)
        if self.answer == 0:
            self.locked[address] = size_bytes
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.locked[address]
        return 0


def test_memory_is_locked_until_nobody_needs_it_and_mapped_for_as_long() -> None:
    runtime, memory = Runtime(), np.zeros(8192, np.uint8)
    mapped, address = weakref.ref(memory), memory.ctypes.data
    lock = PageLock(memory, runtime)
    assert lock.held and runtime.locked == {address: 8192}
    del memory
    gc.collect()
    assert mapped() is not None
    del lock
    gc.collect()
    assert runtime.locked == {} and mapped() is None


def test_a_lock_that_the_system_refuses_is_not_held_and_not_given_back() -> None:
    runtime = Runtime(answer=2)
    lock = PageLock(np.zeros(8192, np.uint8), runtime)
    assert not lock.held
    del lock
    gc.collect()
    assert runtime.locked == {}


def test_a_tensor_lies_where_the_servers_read_it() -> None:
    memory = np.zeros(24, np.uint8)
    tensor_of(memory, torch.empty(3, 4, dtype=torch.bfloat16)).fill_(1.0)
    assert memory.view(np.uint16).tolist() == [0x3F80] * 12
