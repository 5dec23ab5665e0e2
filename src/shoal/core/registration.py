"""A server's registration: how the coordinator comes to know of it, and knows that it lives."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.silence import Silence, blame
from shoal.vocabulary import COORDINATOR, server_name
from shoal.wire import messages as m


@dataclass
class Registration:
    """register: what it says of itself, until it is told that it is known."""

    index: int
    limits: Limits
    register: m.Register | None = None
    done: bool = False
    asked_at: int = 0
    beat_at: int = 0
    coordinator: str = ""  # its address
    coordinator_pid: int = 0
    silence: Silence = field(init=False)  # the coordinator's

    def __post_init__(self) -> None:
        self.silence = Silence(self.limits)

    def begin(self, register: m.Register, coordinator: str, now: int) -> list[k.Effect]:
        """Announce this server."""
        self.register, self.coordinator, self.asked_at = register, coordinator, now
        self.silence.heard(now)
        return [k.Send(COORDINATOR, register)]

    def again(self, version: int, holds: int, now: int) -> list[k.Effect]:
        """The connection is back: there may be a new coordinator. holds: the shard that this server has, or -1."""
        if self.register is None:
            return []
        self.done, self.asked_at = False, now
        self.register = msgspec.structs.replace(self.register, version=version, holds=holds)
        return [k.Send(COORDINATOR, self.register)]

    def overdue(self, now: int) -> str:
        """To be asked at every tick: why nothing more is expected of the coordinator, or ""."""
        silent_ms = self.silence.too_long_ms(now)
        if silent_ms is None:
            return ""
        return blame(server_name(self.index), self.coordinator, self.coordinator_pid, silent_ms)

    def tick(self, version: int, view: int, now: int) -> list[k.Effect]:
        """Say again what may have been lost; give a sign of life. view: of the placement that this server knows."""
        effects: list[k.Effect] = []
        if self.register is not None and not self.done and now - self.asked_at >= self.limits.resend_ms:
            self.asked_at = now
            effects.append(k.Send(COORDINATOR, self.register))
        if self.done and now - self.beat_at >= self.limits.heartbeat_ms:
            self.beat_at = now
            # The driver fills in the bytes: they are counted where they flow.
            effects.append(k.Send(COORDINATOR, m.Heartbeat(server_name(self.index), 0, 0, 0, version, view)))
        return effects
