"""A fleet's member: who has which of its places.

What it promises: no more processes run at once than there are places, nor more for one job than one job
may have. A process is its launcher's alone; it is asked to end when the launcher's connection is over, or
was silent for lease_ms, and killed after GRACE_MS. Its place is free again when it has ended, not before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from signal import SIGCONT, SIGINT, SIGKILL, SIGTERM

from shoal.config import TLS_VARIABLES, Limits
from shoal.core import lending as e
from shoal.core import machine as k
from shoal.core.silence import Silence
from shoal.wire import fleet as f
from shoal.wire import messages as m

GRACE_MS = 5_000  # between asking a process to end and killing it
SIGNALS = frozenset((SIGCONT, SIGINT, SIGKILL, SIGTERM))  # that a launcher may send

VARIABLES_MAX = 100
VALUE_LENGTH_MAX = 4_096
NAME_LENGTH_MAX = 60
JOB_LENGTH_MAX = 1_000
_VARIABLE = re.compile(r"SHOAL_[A-Z0-9_]{1,60}")
# What the member decides for itself: where its servers listen, by which certificates they are known.
OWN_VARIABLES = frozenset(("SHOAL_LISTEN", "SHOAL_FLEET", "SHOAL_FLEET_TOKEN", *TLS_VARIABLES))


@dataclass
class Process:
    """One that takes a place. kill_at: when it is killed, once it was asked to end."""

    launcher: str
    number: int
    name: str
    pid: int = 0
    kill_at: int | None = None


@dataclass
class Launcher:
    """A launcher that is connected, and so its job."""

    since: int
    silence: Silence
    job: str = ""
    tickets: dict[int, int] = field(default_factory=dict)  # number -> ticket of processes that run


class Lender:
    """The machine of a member that lends so many places."""

    def __init__(self, places: int, places_per_job: int, limits: Limits, pid: int) -> None:
        self._places, self._places_per_job = places, places_per_job
        self._limits = limits
        self._pid = pid
        self._launchers: dict[str, Launcher] = {}
        self._processes: dict[int, Process] = {}  # by ticket
        self._tickets = 0
        self._pulse_at = 0
        self._retired = ""

    @property
    def taken(self) -> int:
        """How many places are."""
        return len(self._processes)

    def step(self, event: object, now: int) -> list[k.Effect]:
        match event:
            case k.Tick():
                return self._tick(now)
            case k.Received(source, message):
                return self._received(source, message, now)
            case k.Regained(peer) if peer.startswith(f.LAUNCHER):
                before = self._gone(peer, now) if peer in self._launchers else []
                self._launchers[peer] = Launcher(now, Silence(self._limits, now))
                return before
            case k.Lost(peer) if peer in self._launchers:
                return self._gone(peer, now)
            case e.Spawned(ticket, pid, reason):
                return self._spawned(ticket, pid, reason)
            case e.Wrote(ticket, text):
                return self._tell(ticket, lambda number: f.Said(number, text))
            case e.Finished(ticket, status):
                return self._finished(ticket, status)
            case e.Retire(reason):
                self._retired = reason
                leaving: list[k.Effect] = [k.Send(peer, f.Leaving(reason)) for peer in self._launchers]
                return leaving + self._end(self._processes, now)
            case _:
                return []

    # --- messages -----------------------------------------------------------------------------------

    def _received(self, source: str, message: m.Message, now: int) -> list[k.Effect]:
        launcher = self._launchers.get(source)
        if launcher is None:  # a visitor: it may look, and no more
            return [k.Send(source, self._status(now))] if isinstance(message, f.PlacesRequest) else []
        launcher.silence.heard(now)
        match message:
            case f.Lend(number=number):
                reason = self._objection(launcher, message)
                if reason:
                    return [k.Send(source, f.Declined(number, reason))]
                return self._lend(source, launcher, message)
            case f.Signal(number, signal) if number in launcher.tickets and signal in SIGNALS:
                return [e.Kill(launcher.tickets[number], signal)]
            case f.PlacesRequest():
                return [k.Send(source, self._status(now))]
            case _:
                return []

    def _objection(self, launcher: Launcher, lend: f.Lend) -> str:
        """Why this is not lent; "" if it is."""
        others = {process.launcher for process in self._processes.values()}
        if self._retired:
            return self._retired
        if self.taken >= self._places:
            return f"its places are taken, all {self._places} of them (--places), by {len(others)} jobs"
        if len(launcher.tickets) >= self._places_per_job:
            return f"one job may have {self._places_per_job} of its places (--places-per-job), and this one has them"
        if lend.number in launcher.tickets:
            return f"number {lend.number} is that of a process which runs"
        if launcher.job not in ("", lend.job):
            return f"this launcher's job is {launcher.job!r}; another job needs a launcher of its own"
        return _malformed(lend)

    def _lend(self, source: str, launcher: Launcher, lend: f.Lend) -> list[k.Effect]:
        self._tickets += 1
        launcher.job = lend.job
        launcher.tickets[lend.number] = self._tickets
        self._processes[self._tickets] = Process(source, lend.number, lend.name)
        return [e.Spawn(self._tickets, lend.name, lend.environment)]

    def _status(self, now: int) -> f.Places:
        loans = []
        for name, launcher in self._launchers.items():
            held = [self._processes[ticket] for ticket in launcher.tickets.values()]
            if held:
                processes = tuple((process.name, process.pid) for process in held)
                loans.append(f.Loan(launcher.job, _known(name), now - launcher.since, processes))
        return f.Places(self._pid, self._places, self._places_per_job, self.taken, tuple(loans))

    # --- processes ----------------------------------------------------------------------------------

    def _spawned(self, ticket: int, pid: int, reason: str) -> list[k.Effect]:
        process = self._processes[ticket]
        if reason:
            told = self._tell(ticket, lambda number: f.Declined(number, reason))
            self._forget(ticket)
            return [k.Log(f"cannot start {process.name} for launcher {_known(process.launcher)}: {reason}"), *told]
        process.pid = pid
        job = self._launchers[process.launcher].job
        words = f"lent {process.name} of {job!r} (pid {pid}) to launcher {_known(process.launcher)}: {self._share}"
        return [k.Log(words), *self._tell(ticket, lambda number: f.Lent(number, pid))]

    def _finished(self, ticket: int, status: int) -> list[k.Effect]:
        process = self._processes[ticket]
        told = self._tell(ticket, lambda number: f.Ended(number, status))
        self._forget(ticket)
        how = f"ended with exit status {status}" if status >= 0 else f"was killed by signal {-status}"
        who = f"{process.name} (pid {process.pid}) of launcher {_known(process.launcher)}"
        return [k.Log(f"{who} {how}: {self._share}"), *told]

    @property
    def _share(self) -> str:
        return f"{self.taken} of {self._places} places are taken"

    def _tell(self, ticket: int, message: Callable[[int], m.Message]) -> list[k.Effect]:
        """Tell a process's launcher, while it is there."""
        process = self._processes[ticket]
        launcher = self._launchers.get(process.launcher)
        if launcher is None or launcher.tickets.get(process.number) != ticket:
            return []
        return [k.Send(process.launcher, message(process.number))]

    def _forget(self, ticket: int) -> None:
        process = self._processes.pop(ticket)
        launcher = self._launchers.get(process.launcher)
        if launcher is not None and launcher.tickets.get(process.number) == ticket:
            del launcher.tickets[process.number]

    def _gone(self, peer: str, now: int) -> list[k.Effect]:
        """A launcher's connection is over: what it borrowed ends."""
        tickets = self._launchers.pop(peer).tickets.values()
        if not tickets:
            return []
        names = ", ".join(f"{self._processes[ticket].name} (pid {self._processes[ticket].pid})" for ticket in tickets)
        return [k.Log(f"launcher {_known(peer)} is gone; what it borrowed ends: {names}"), *self._end(tickets, now)]

    def _end(self, tickets: Iterable[int], now: int) -> list[k.Effect]:
        """Ask these to end; who is stopped would not hear of it."""
        effects: list[k.Effect] = []
        for ticket in tickets:
            self._processes[ticket].kill_at = now + GRACE_MS
            effects += [e.Kill(ticket, SIGTERM), e.Kill(ticket, SIGCONT)]
        return effects

    # --- time ---------------------------------------------------------------------------------------

    def _tick(self, now: int) -> list[k.Effect]:
        effects: list[k.Effect] = []
        for peer, launcher in self._launchers.items():
            silent_ms = launcher.silence.too_long_ms(now)
            if silent_ms is not None:
                how_long = f"{silent_ms / 1000:.1f} s"
                reason = f"launcher {_known(peer)} was silent for {how_long}: it is stopped, or the network is down"
                effects += [k.Log(reason), e.Cut(peer, reason)]
                launcher.silence.since = None
        if now >= self._pulse_at:
            self._pulse_at = now + self._limits.heartbeat_ms
            effects += [k.Send(peer, f.Pulse()) for peer in self._launchers]
        for ticket, process in self._processes.items():
            if process.kill_at is not None and now >= process.kill_at:
                process.kill_at = None
                effects.append(e.Kill(ticket, SIGKILL))
        return effects


def _known(launcher: str) -> str:
    """What others may know of a launcher's name: host and process id; the rest keeps them from taking it."""
    return launcher.removeprefix(f.LAUNCHER).rpartition("-")[0]


def _malformed(lend: f.Lend) -> str:
    """What a Lend says that cannot be; "" if nothing."""
    if not 0 < len(lend.name) <= NAME_LENGTH_MAX or not lend.name.isprintable():
        return f"the name of a process has 1 to {NAME_LENGTH_MAX} printable characters"
    if not 0 < len(lend.job) <= JOB_LENGTH_MAX or not lend.job.isprintable():
        return f"the name of a job has 1 to {JOB_LENGTH_MAX} printable characters"
    if len(lend.environment) > VARIABLES_MAX:
        return f"{len(lend.environment)} variables are more than {VARIABLES_MAX}"
    for name, value in lend.environment.items():
        if not _VARIABLE.fullmatch(name) or name in OWN_VARIABLES:
            return f"{name[:NAME_LENGTH_MAX]!r} is no variable that a launcher may set for a server"
        if len(value) > VALUE_LENGTH_MAX or "\0" in value:
            return f"the value of {name} has more than {VALUE_LENGTH_MAX} characters, or a NUL among them"
    return ""
