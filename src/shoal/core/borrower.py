"""A launcher's side of a fleet: which member is asked for which place, and what becomes of what was borrowed.

What it promises: members are asked in turn, so that servers spread over them, and each at most once for a
place. Every Borrow is answered, by Obtained or by Unobtainable with the reason of each member; every process
that was obtained ends in exactly one Over, also when its member is gone or was silent for lease_ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from signal import SIGKILL

from shoal.config import Limits
from shoal.core import lending as e
from shoal.core import machine as k
from shoal.core.silence import Silence
from shoal.wire import fleet as f
from shoal.wire import messages as m


@dataclass
class Member:
    """silence: while it is connected. away: why it is not, or will soon not be."""

    silence: Silence | None = None
    away: str = "it is not connected"


@dataclass
class Request:
    """A Borrow that is not answered. member: who is asked; declined: those who said no, and why."""

    borrow: e.Borrow
    until: int
    member: str = ""
    declined: dict[str, str] = field(default_factory=dict)


class Borrower:
    """The machine of a launcher. members: their names, in the order in which they are asked."""

    def __init__(self, members: Sequence[str], limits: Limits) -> None:
        self._members = {name: Member() for name in members}
        self._limits = limits
        self._turn = 0
        self._requests: dict[int, Request] = {}
        self._running: dict[int, str] = {}  # number -> member
        self._pulse_at = 0

    def step(self, event: object, now: int) -> list[k.Effect]:
        match event:
            case k.Tick():
                return self._tick(now)
            case k.Received(source, message) if source in self._members:
                return self._received(source, message, now)
            case k.Regained(peer) if peer in self._members:
                self._members[peer] = Member(Silence(self._limits, now), "its connection broke")
                return []
            case k.Lost(peer) if peer in self._members:
                return self._gone(peer)
            case e.Borrow(number=number):
                self._requests[number] = Request(event, now + self._limits.start_ms)
                return self._ask(self._requests[number])
            case e.Forward(number, signal) if number in self._running:
                return [k.Send(self._running[number], f.Signal(number, signal))]
            case _:
                return []

    def _received(self, member: str, message: m.Message, now: int) -> list[k.Effect]:
        silence = self._members[member].silence
        if silence is not None:
            silence.heard(now)
        match message:
            case f.Lent(number, pid) if self._asked(number, member):
                del self._requests[number]
                self._running[number] = member
                return [e.Obtained(number, member, pid)]
            case f.Lent(number):  # too late: nobody waits for it
                return [k.Send(member, f.Signal(number, SIGKILL))]
            case f.Declined(number, reason) if self._asked(number, member):
                self._requests[number].declined[member] = reason
                return self._ask(self._requests[number])
            case f.Said(number, text) if self._running.get(number) == member:
                return [e.Heard(number, text)]
            case f.Ended(number, status) if self._running.get(number) == member:
                del self._running[number]
                return [e.Over(number, status)]
            case f.Leaving(reason):
                self._members[member].away = reason
                return self._without(member)
            case _:
                return []

    def _asked(self, number: int, member: str) -> bool:
        return number in self._requests and self._requests[number].member == member

    def _ask(self, request: Request) -> list[k.Effect]:
        """Ask the next member that is there and has not been asked yet."""
        borrow = request.borrow
        names = list(self._members)
        for _ in names:
            name = names[self._turn % len(names)]
            self._turn += 1
            if name in request.declined:
                continue
            if self._members[name].silence is None:
                request.declined[name] = self._members[name].away
                continue
            request.member = name
            return [k.Send(name, f.Lend(borrow.number, borrow.job, borrow.name, dict(borrow.environment)))]
        return self._give_up(request)

    def _give_up(self, request: Request) -> list[k.Effect]:
        del self._requests[request.borrow.number]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in request.declined.items())
        return [e.Unobtainable(request.borrow.number, reasons)]

    def _gone(self, name: str) -> list[k.Effect]:
        """The connection to a member is over."""
        self._members[name].silence = None
        return self._without(name)

    def _without(self, name: str) -> list[k.Effect]:
        """What a member lent is over, and what it was asked for others are asked for."""
        reason = self._members[name].away
        lost = [number for number, member in self._running.items() if member == name]
        for number in lost:
            del self._running[number]
        effects: list[k.Effect] = [e.Over(number, -SIGKILL, f"its {name} is gone: {reason}") for number in lost]
        for request in [request for request in self._requests.values() if request.member == name]:
            request.declined[name] = reason
            effects += self._ask(request)
        return effects

    def _tick(self, now: int) -> list[k.Effect]:
        effects: list[k.Effect] = []
        for name, member in self._members.items():
            silent_ms = member.silence.too_long_ms(now) if member.silence is not None else None
            if silent_ms is not None:
                member.away = f"it was silent for {silent_ms / 1000:.1f} s (SHOAL_LEASE_MS sets how long it may be)"
                effects.append(e.Cut(name, member.away))
                effects += self._gone(name)
        if now >= self._pulse_at:
            self._pulse_at = now + self._limits.heartbeat_ms
            effects += [k.Send(name, f.Pulse()) for name, member in self._members.items() if member.silence is not None]
        for request in [request for request in self._requests.values() if now >= request.until]:
            request.declined[request.member] = f"no answer in start_ms={self._limits.start_ms}"
            effects += self._give_up(request)
        return effects
