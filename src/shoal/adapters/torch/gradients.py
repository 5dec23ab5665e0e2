"""When each gradient leaves: during backward where that is safe, at step() where it is not.

A parameter's hook fires once per backward that reaches it. How many times it fires per step is
learnt from the step before, so with gradient accumulation a gradient leaves at its last firing. At
step() every gradient that left is compared with what is there now; if one changed, the worker
starts its clock's contribution anew and all are pushed again, so a wrong guess costs time and
never a wrong update. A parameter whose gradients are changed between backward and step (clipped by
hand, unscaled) is held back until step() from then on.

Changes are seen by autograd's version counter and the tensor's identity. A change through
`grad.data` escapes both, so in the first step, in which nothing leaves early, the range of values is
compared too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoal.adapters.torch.groups import Named
from shoal.adapters.torch.tensors import CudaReading, PageLock, Reading, extremes
from shoal.errors import ConfigurationError
from shoal.runtime.shared import Bytes
from shoal.runtime.worker import Worker

LARGE_BYTES = 16 << 20  # of all gradients: what was copied first is out of the caches when servers read it
HELD_BACK = 0  # a plan: never leaves before step()


@dataclass(frozen=True)
class Seen:
    """A gradient as it was at one moment."""

    gradient: Tensor
    version: int
    extremes: Tensor | None = None

    def same_as(self, gradient: Tensor | None) -> bool:
        return (
            gradient is self.gradient
            and gradient._version == self.version
            and (self.extremes is None or torch.equal(self.extremes, extremes(gradient)))
        )


@dataclass(eq=False)
class Slot:
    """One trainable parameter on its way through a step."""

    index: int
    named: Named
    reading: Reading
    plan: int | None = None  # the firing at which its gradient leaves; None: not learnt yet
    firings: int = 0
    seen: Seen | None = None  # at the firing that should be the last
    sent: bool = False
    mine: bool = True  # this worker pushes some of it; a rank of a group has its part only

    @property
    def gradient(self) -> Tensor | None:
        return self.named.parameter.grad

    def outrun(self) -> bool:
        """More backwards came than planned."""
        return self.plan is not None and self.firings > self.plan

    def changed(self) -> bool:
        """The gradient is not what it was at the firing that should be the last."""
        return self.seen is not None and not self.seen.same_as(self.gradient)


@dataclass(eq=False)
class Outbox:
    """Sends the gradients of all slots, each once per attempt."""

    worker: Worker
    slots: Sequence[Slot]
    page_lock: PageLock | None = None  # on the memory that servers read, where gradients come from CUDA devices
    flight: list[Slot] = field(default_factory=list)  # on their way to host memory
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, worker: Worker, items: Sequence[Named]) -> Outbox:
        """One slot per parameter, in the order of the table; one copying stream per CUDA device."""
        streams: dict[torch.device, torch.cuda.Stream] = {}
        large = sum(item.parameter.numel() * item.parameter.element_size() for item in items) >= LARGE_BYTES
        slots: list[Slot] = []
        for index, item in enumerate(items):
            device = item.parameter.device
            if device.type == "cuda":
                if device not in streams:
                    streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                slots.append(Slot(index, item, CudaReading(item.parameter, streams[device])))
            else:
                slots.append(Slot(index, item, Reading(item.parameter, large, checks=not worker.encodes)))
        memory = worker.gradient_arena() if streams else None
        return cls(worker, slots, PageLock(memory) if memory is not None else None)

    def fired(self, index: int, _: Tensor) -> None:
        """Autograd has accumulated the gradient of slot `index`. Called from its threads."""
        slot = self.slots[index]
        slot.firings += 1
        gradient = slot.gradient
        if gradient is None or slot.plan == HELD_BACK or gradient.layout != torch.strided:
            return
        if slot.plan is None:
            slot.seen = Seen(gradient, gradient._version, extremes(gradient) if gradient.numel() else None)
        elif slot.firings == slot.plan and not slot.sent:
            slot.seen = Seen(gradient, gradient._version)
            self._send(slot)
        self._collect(wait=False)

    def complete(self, unscaled: bool) -> None:
        """Push all that has not left, and again what left too early; returns when all bytes are there.

        unscaled: GradScaler.unscale_ changed the gradients, which no version counter shows.
        """
        if any(slot.sent and (unscaled or slot.changed()) for slot in self.slots):
            self._restart()
        for slot in self.slots:
            if slot.gradient is not None and slot.mine and not slot.sent:
                self._send(slot)
        self._collect(wait=True)

    def not_finite(self) -> list[Slot]:
        """Slots whose gradient, as sent, holds NaN or infinity."""
        return [slot for slot in self.slots if slot.sent and not slot.reading.finite]

    def plan(self, unscaled: bool) -> None:
        """Learn from the step that ends when to send in the next."""
        for slot in self.slots:
            if slot.firings == 0 or slot.plan == HELD_BACK or not slot.reading.finite:
                continue  # nothing to learn from, or (NaN equals nothing) impossible to
            touched = not slot.outrun() and (unscaled or slot.changed())
            slot.plan = HELD_BACK if touched else slot.firings

    def clear(self) -> None:
        """Forget the step; keep the plans."""
        for slot in self.slots:
            slot.firings, slot.seen, slot.sent = 0, None, False

    def drop(self) -> None:
        """Contribute nothing after all: take back what was pushed, and forget the step."""
        if any(slot.sent for slot in self.slots):
            self._restart()
        self.clear()

    # --- helpers ----------------------------------------------------------------------------------

    def _restart(self) -> None:
        self._collect(wait=True)  # no copy may end after its slot is sent again
        self.worker.restart()
        for slot in self.slots:
            slot.sent = False

    def _send(self, slot: Slot) -> None:
        gradient = slot.gradient
        assert gradient is not None, "only gradients that exist are sent"
        _check(slot.named, gradient)
        slot.sent = True
        if not gradient.numel():
            slot.reading.finite = True
            return
        slot.reading.begin(gradient, self._place(slot))
        if slot.reading.landed(wait=False):
            self._push(slot)
            return
        with self.lock:
            self.flight.append(slot)

    def _place(self, slot: Slot) -> Bytes | None:
        """Where servers read the gradient, if it is best copied there at once."""
        reachable = not isinstance(slot.reading, CudaReading) or (self.page_lock is not None and self.page_lock.held)
        return self.worker.gradient_memory(slot.index) if reachable else None

    def _collect(self, wait: bool) -> None:
        """Push what has landed in host memory since; wait: all of it."""
        if not self.flight:
            return
        with self.lock:
            landed = [slot for slot in self.flight if slot.reading.landed(wait)]
            self.flight = [slot for slot in self.flight if slot not in landed]
        for slot in landed:
            self._push(slot)

    def _push(self, slot: Slot) -> None:
        finite = self.worker.push(slot.index, slot.reading.bytes)
        if not slot.reading.checks:
            slot.reading.finite = finite


def _check(item: Named, gradient: Tensor) -> None:
    if gradient.layout != torch.strided:
        raise ConfigurationError(
            f"the gradient of parameter {item.name!r} is {gradient.layout}; tables are dense: "
            "make its layer with sparse=False (nn.Embedding, nn.EmbeddingBag)"
        )
    if gradient.shape != item.parameter.shape:
        raise ConfigurationError(
            f"the gradient of parameter {item.name!r} has shape {tuple(gradient.shape)}, "
            f"the parameter {tuple(item.parameter.shape)}; assign gradients of the parameter's shape"
        )
