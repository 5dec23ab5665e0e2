"""A simulated cluster: the real machines of core, driven in virtual time over a faulty network.

One seed gives one run, to the last event: time is a heap of what happens next, chance comes from
the scenario's generators, and the machines have neither. After every event the invariants are
checked against the trace; the first that does not hold ends the run with a Violation.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from shoal.core import machine as k
from shoal.core.coordinator import RUNNING, Coordinator
from shoal.core.following import Following
from shoal.core.session import Session
from shoal.core.shard import Shard
from shoal.sim import facts as f
from shoal.sim.circles import Circles
from shoal.sim.coordinators import Coordinators
from shoal.sim.faults import Network
from shoal.sim.frozen import FOR_GOOD, Frozen
from shoal.sim.invariants import Violation, check
from shoal.sim.mishaps import Mishaps
from shoal.sim.registry import Registry
from shoal.sim.scenario import Scenario
from shoal.sim.servers import Payload, Servers
from shoal.sim.succession import Succession
from shoal.sim.trace import Trace
from shoal.sim.transcript import Line
from shoal.sim.workers import Workers
from shoal.vocabulary import COORDINATOR
from shoal.wire import messages as m

DEADLINE_MS = 60_000  # from the last fault to the end of the job
EVENTS_MAX = 200_000
LINES_MAX = 60


@dataclass(frozen=True)
class Machines:
    """What the world drives; a planted fault puts another machine here."""

    coordinator: Callable[..., Coordinator] = Coordinator
    shard: Callable[..., Shard] = Shard
    session: Callable[..., Session] = Session
    registry: Callable[..., Registry] = Registry
    following: Callable[..., Following] = Following


@dataclass
class Figures:
    """What a run amounted to."""

    events: int = 0
    crashes: int = 0
    frozen: int = 0
    stopped: int = 0
    silent: int = 0  # workers and servers that gave up on the coordinator
    fenced: int = 0
    forged: int = 0
    falls: int = 0
    losses: int = 0
    drains: int = 0
    changes: int = 0  # of policy that somebody asked for
    breaks: int = 0
    outages: int = 0
    oustings: int = 0
    torn: int = 0  # groups that lost a rank, and were started again
    deposed: int = 0  # coordinators whose lease ended while they lived


class World:
    """One run of one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        machines: Machines | None = None,
        network_seed: int = 0,
        lines_max: int | None = LINES_MAX,
    ) -> None:
        self.scenario = scenario
        self.machines = machines or Machines()
        self.now = 0
        self.figures = Figures()
        self.lines: deque[Line] = deque(maxlen=lines_max)
        self.network = Network(scenario, seed=hash((scenario.seed, network_seed)))
        self.trace = Trace(scenario.spec, scenario.job.servers * scenario.job.replicas)
        self.frozen = Frozen(scenario.job.limits.lease_ms)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._stopped = False  # the job ended before its time
        self._rng = Random(hash((scenario.seed, network_seed, 7)))
        self.servers = Servers(self, self._rng)
        self.workers = Workers(self, self._rng)
        self.circles = Circles(self, Random(hash((scenario.seed, network_seed, 9))))
        self.succession = Succession(self, Random(hash((scenario.seed, network_seed, 8))))
        self.coordinators = Coordinators(self)

    def run(self) -> None:
        """Run to the end of the job (Violation if an invariant does not hold)."""
        self._prepare()
        deadline = self.scenario.heals_at_ms + DEADLINE_MS
        while not (self._stopped or self._over()):
            self.now, _, action = heapq.heappop(self._heap)
            if self.now > deadline or self.figures.events > EVENTS_MAX:
                raise Violation("Progress", f"the job is not over at {self.now} ms: {self._state()}")
            self.figures.events += 1
            action()
        if not self._stopped:
            ages = self.coordinators.leader.log.ages
            staged = {server.index: tuple(server.store.staged) for server in self.servers}
            self.note(f.Ended(staged, ages.counted, ages.dropped))

    @property
    def begun(self) -> bool:
        """Whether the log has an entry, so that there is something to take over."""
        return bool(self.trace.log)

    def stop(self) -> None:
        """The job ends before its time, as it may."""
        self.figures.stopped += 1
        self._stopped = True

    def must_be_deserted(self) -> None:
        """The coordinator is stopped for good, and everybody has had the time to notice."""
        waiting = [server.name for server in self.servers]
        waiting += [life.name for life in self.workers if life.session.incarnation >= 0]
        if waiting:
            raise Violation("Progress", f"{', '.join(waiting)} still waits for a coordinator that is stopped for good")
        self.stop()

    def note(self, fact: f.Fact) -> None:
        """Something happened: the invariants are checked against it."""
        check(self.trace, fact)
        self.trace.remember(fact)

    def line(self, source: str, target: str, what: object, note: str = "") -> None:
        """A line of the transcript."""
        self.lines.append(Line(self.now, source, target, what, note))

    # --- what happens when ----------------------------------------------------------------------

    def at(self, when: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, action))

    def after(self, span: tuple[int, int], action: Callable[[], None]) -> None:
        self.at(self.now + self._rng.randint(*span), action)

    def put_off(self, node: str, action: Callable[[], None], *, first: bool = False) -> bool:
        """Whether the node is stopped; then the action comes when it goes on. first: before all that waits."""
        until = self.frozen.until(node, self.now)
        if until is None:
            return False
        if until < FOR_GOOD:
            self.at(until + (not first), action)
        return True

    # --- messages -------------------------------------------------------------------------------

    def send(
        self, source: str, target: str, message: m.Message, payload: Payload | None = None, epoch: int | None = None
    ) -> None:
        """epoch: of the coordinator that sends; a node's words go to the one that it is connected to."""
        arrivals = self.network.arrivals(source, target, self.now)
        self.line(source, target, message, "" if arrivals else "lost")
        if target == COORDINATOR:
            epoch = self.succession.led_by(source)
        for when in arrivals:
            self.at(when, partial(self.pass_on, source, target, message, {} if payload is None else payload, epoch))

    def pass_on(self, source: str, target: str, message: m.Message, payload: Payload, epoch: int | None) -> None:
        """A message arrives, unless it went down with the connection to its coordinator."""
        led = COORDINATOR in (source, target)
        if not led or epoch is None or self.succession.passes(epoch, source, target, message):
            self.arrive(source, target, message, payload, epoch)

    def arrive(self, source: str, target: str, message: m.Message, payload: Payload, epoch: int | None = None) -> None:
        """epoch: of the coordinator that sent it, or that it is for; None: of the one that leads."""
        self.frozen.arrived(source, target, self.now)
        self.servers.heard(source, message)
        again = partial(self.arrive, source, target, message, payload, epoch)
        reign = epoch or self.coordinators.reign
        if self.put_off(target if target != COORDINATOR else self.coordinators.office(reign), again):
            return
        if source == COORDINATOR and epoch is not None and epoch == self.succession.led_by(target):
            self.succession.heard(target)
        kind, _, number = target.partition("/")
        match kind:
            case "coordinator":
                self.coordinators.arrive(source, message, reign)
            case "server":
                self.servers.arrive(self.servers[int(number)], source, message, payload)
            case _:
                self.workers.arrive(int(number), source, message, payload)

    def notice(self, node: str, event: k.Lost | k.Regained) -> None:
        """A node hears that a connection of its broke, or is back."""
        if self.put_off(node, partial(self.notice, node, event)):
            return
        self.succession.noticed(node, event)
        kind, _, number = node.partition("/")
        match kind:
            case "coordinator":
                for epoch in list(self.coordinators.reigns):
                    self.coordinators.step(event, epoch)
            case "server":
                self.servers.step(self.servers[int(number)], event)
            case _:
                if (life := self.workers.lives.get(int(number))) is not None:
                    self.workers.take(life, event)

    # --- from the beginning to the end ----------------------------------------------------------

    def _prepare(self) -> None:
        self.coordinators.start()
        for _ in range(self.scenario.job.servers * self.scenario.job.replicas):
            self.servers.start(within_ms=50)
        self.workers.prepare()
        Mishaps(self, self._rng).prepare()

    def _over(self) -> bool:
        """No worker lives, will come, or is still believed to live; every shard has applied the whole log."""
        leader = self.coordinators.leader
        return (
            not self.workers.lives
            and not self.workers.starting
            and not self.coordinators.headless
            and leader.phase == RUNNING
            and not leader.membership.members
            and all(self.servers[index].shard.version == len(self.trace.log) for index in self.coordinators.placed)
            and all(server.shard.running is None and not server.shard.writing for server in self.servers)
            and not any(self.servers[index].gone for index in leader.membership.servers)
        )

    def _state(self) -> str:
        sessions = ", ".join(
            f"{life.name} is parked for {life.session.parked or 'nothing'} at clock {life.session.clock}"
            for life in self.workers
        )
        shards = ", ".join(f"server/{server.index} is at version {server.shard.version}" for server in self.servers)
        waiting = self.coordinators.leader.course.waiting
        return f"the coordinator waits for {waiting!r}; {sessions or 'no worker lives'}; {shards}"
