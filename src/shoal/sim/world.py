"""A simulated cluster: the real machines of core, driven in virtual time over a faulty network.

One seed gives one run, to the last event: time is a heap of what happens next, chance comes from
the scenario's generators, and the machines have neither. After every event the invariants are
checked against the trace; the first that does not hold ends the run with a Violation.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from shoal.core import machine as k
from shoal.core.coordinator import RUNNING, Coordinator
from shoal.core.following import Following
from shoal.core.recovery import valid
from shoal.core.session import Session
from shoal.core.shard import Shard
from shoal.sim import trace as t
from shoal.sim.circles import Circles
from shoal.sim.faults import Network
from shoal.sim.feedback import Estate, Feedback, Residual, Taken
from shoal.sim.frozen import FOR_GOOD, Frozen
from shoal.sim.invariants import Violation, check
from shoal.sim.mishaps import Mishaps
from shoal.sim.registry import Registry
from shoal.sim.scenario import Scenario
from shoal.sim.servers import REACHED_MS, WRITE_MS, Payload, Servers
from shoal.sim.succession import Succession
from shoal.sim.transcript import Line
from shoal.sim.worker import Life, Thread, Wish
from shoal.vocabulary import COORDINATOR, Contributor, server_name
from shoal.wire import messages as m

DEADLINE_MS = 60_000  # from the last fault to the end of the job
EVENTS_MAX = 200_000
MANIFEST_MS = (1, 20)
RELAUNCH_MS = (1, 40)  # until the launcher restarts a worker that was declared dead
GHOSTS_PER_DEATH = 12
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
        self.trace = t.Trace(scenario.spec, scenario.job.servers * scenario.job.replicas)
        self.lives: dict[int, Life] = {}
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._lives_started = 0
        self.starting = 0  # workers that will come yet
        self._stopped = False  # for want of a server
        self.heard_at: dict[str, int] = {}  # by server: its last sign of life that arrived
        self.frozen = Frozen(scenario.job.limits.lease_ms)
        self._wishes: dict[int, tuple[Thread, Wish]] = {}  # by nonce
        self.last_words: dict[int, deque[tuple[str, m.Message, Payload, int]]] = {}  # by nonce
        self._rng = Random(hash((scenario.seed, network_seed, 7)))
        self.servers = Servers(self, self._rng)
        self.estates: dict[int, Estate] = {}  # by rank
        self.retained: dict[str, Residual] = {}  # by file of a snapshot
        self.circles = Circles(self, Random(hash((scenario.seed, network_seed, 9))))
        self.succession = Succession(self, Random(hash((scenario.seed, network_seed, 8))))
        self.reign = self.succession.begin()  # the epoch of the coordinator that leads, or led last
        self.coordinator = self.machines.coordinator(scenario.job, epoch=self.reign)
        self.reigns = {self.reign: self.coordinator}  # those that live, by epoch
        self.taken_over = False  # some coordinator has taken another one's place
        self._unsettled = False  # what the last one did is not all known to the one that leads now

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
            ages = self.coordinator.log.ages
            staged = {server.index: tuple(server.store.staged) for server in self.servers}
            self.note(t.Ended(staged, ages.counted, ages.dropped))

    # --- the coordinator's end, and another one's beginning ----------------------------------------

    @property
    def headless(self) -> bool:
        """Nobody leads: the one that led last is gone."""
        return self.reign not in self.reigns

    @property
    def begun(self) -> bool:
        """Whether the log has an entry, so that there is something to take over."""
        return bool(self.trace.log)

    @property
    def recoverable(self) -> bool:
        """Whether the servers that live know all that some worker has seen of the log."""
        return self._known() >= max((life.session.version for life in self.lives.values()), default=0)

    def _known(self) -> int:
        """The last entry that some server has, and all before it."""
        entries: list[m.Commit] = []
        placed = [self.servers[index].shard for index in self._placed]
        for shard in placed:  # those that do not follow the log yet tell the next coordinator what they have heard, too
            entries += [*shard.journal.pending.values(), *(kept.commit for kept in shard.journal.kept.values())]
            entries += [shard.progress.commit] if shard.progress is not None else []
        last, known = max((shard.version for shard in placed), default=-1), valid(entries)
        return next(seq for seq in itertools.count(last) if seq + 1 not in known)

    def fall(self) -> None:
        """The coordinator is gone. An entry that reached no shard never happened."""
        self.figures.falls += 1
        self.line(COORDINATOR, "", "is killed")
        self._gone(self.reign)
        if not self.succession.on:
            self.reign += 1

    def _gone(self, epoch: int) -> None:
        """A coordinator's process has ended."""
        del self.reigns[epoch]
        self.frozen.thaws.pop(self.office(epoch), None)
        self.succession.ended(epoch)
        if epoch == self.reign and self.recoverable:
            self.trace.forget(self._known())

    def rise(self, epoch: int) -> None:
        """A coordinator of the next epoch begins; the one before may still live."""
        thaw = self.frozen.thaws.pop(COORDINATOR, None)
        former, self.reign, self.taken_over = self.reign, epoch, True
        if thaw is not None:
            self.frozen.thaws[self.office(former)] = thaw
        self._unsettled = self._unsettled or bool(self.reigns)
        self.coordinator = self.machines.coordinator(self.scenario.job, epoch=epoch, recovers=True)
        self.reigns[epoch] = self.coordinator
        self.line(COORDINATOR, "", f"of epoch {epoch} begins")
        self.succession.inaugurate(epoch)
        if self.succession.on:
            self._tick_coordinator(epoch)

    def office(self, epoch: int) -> str:
        """The name of a coordinator's node, for what stops it."""
        return COORDINATOR if epoch == self.reign else f"coordinator of epoch {epoch}"

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

    def _prepare(self) -> None:
        scenario = self.scenario
        self.at(0, self._tick_coordinator if not self.succession.on else partial(self._tick_coordinator, self.reign))
        self.succession.inaugurate(self.reign)
        for _ in range(scenario.job.servers * scenario.job.replicas):
            self.servers.start(within_ms=50)
        for habits in scenario.workers:
            self.starting += 1
            self.at(habits.joins_at_ms, partial(self.start, habits.rank))
        Mishaps(self, self._rng).prepare()

    def _over(self) -> bool:
        """No worker lives, will come, or is still believed to live; every shard has applied the whole log."""
        return (
            not self.lives
            and not self.starting
            and not self.headless
            and self.coordinator.phase == RUNNING
            and not self.coordinator.membership.members
            and all(self.servers[index].shard.version == len(self.trace.log) for index in self._placed)
            and all(server.shard.running is None and not server.shard.writing for server in self.servers)
            and not any(self.servers[index].gone for index in self.coordinator.membership.servers)
        )

    @property
    def _placed(self) -> list[int]:
        """Servers that follow the log."""
        return [index for index in self.coordinator.replicas.servers if not self.servers[index].gone]

    def _state(self) -> str:
        sessions = ", ".join(
            f"{life.name} is parked for {life.session.parked or 'nothing'} at clock {life.session.clock}"
            for life in self.lives.values()
        )
        shards = ", ".join(f"server/{server.index} is at version {server.shard.version}" for server in self.servers)
        return (
            f"the coordinator waits for {self.coordinator.course.waiting!r}; {sessions or 'no worker lives'}; {shards}"
        )

    def note(self, fact: t.Fact) -> None:
        check(self.trace, fact)
        self.trace.remember(fact)

    # --- steps of the machines ------------------------------------------------------------------

    def must_be_deserted(self) -> None:
        """The coordinator is stopped for good, and everybody has had the time to notice."""
        waiting = [server.name for server in self.servers]
        waiting += [life.name for life in self.lives.values() if life.session.incarnation >= 0]
        if waiting:
            raise Violation("Progress", f"{', '.join(waiting)} still waits for a coordinator that is stopped for good")
        self.figures.stopped += 1
        self._stopped = True

    def _tick_coordinator(self, epoch: int | None = None) -> None:
        """epoch: of the one that ticks; None: whichever leads."""
        if epoch is not None and epoch not in self.reigns:
            return
        office = self.office(self.reign if epoch is None else epoch)
        if self.put_off(office, partial(self._tick_coordinator, epoch), first=True):
            return
        self.step_coordinator(k.Tick(), epoch)
        self.at(self.now + self.scenario.job.limits.tick_ms, partial(self._tick_coordinator, epoch))

    def _tick_worker(self, life: Life) -> None:
        if not life.over and not self.put_off(life.name, partial(self._tick_worker, life), first=True):
            self.step_session(life, k.Tick())
            self.succession.tick(life.name)
            self.resume(life)
            self.at(self.now + self.scenario.job.limits.tick_ms, partial(self._tick_worker, life))

    def step_coordinator(self, event: object, epoch: int | None = None) -> None:
        """Let a coordinator take an event, and perform what it answers. epoch: its own; None: the one that leads."""
        epoch = self.reign if epoch is None else epoch
        machine = self.reigns.get(epoch)
        if machine is None or self.put_off(self.office(epoch), partial(self.step_coordinator, event, epoch)):
            return
        learning = machine.recovery.accounts is None
        effects = machine.step(event, self.now)
        if learning and machine.recovery.accounts is not None and epoch == self.reign:
            self._settle(machine.log.since)
        for effect in effects:
            match effect:
                case k.Send(to=to, message=message):
                    self.succession.spoke(epoch)
                    if self.heeded(epoch):
                        if isinstance(message, m.Commit) and message.seq == len(self.trace.log) + 1:
                            self._entered(message, machine)
                        self.note(t.Said(to, message, self.now))
                    self.send(COORDINATOR, to, message, epoch=epoch)
                case k.Manifest(version=version, lost=files):
                    self.line(COORDINATOR, "", effect)
                    if self.heeded(epoch):
                        self.note(t.Saved(version, tuple(self.retained[file] for file in files)))
                    self.after(MANIFEST_MS, partial(self.step_coordinator, k.Recorded(version), epoch))
                case k.Keep(placed):
                    self.succession.keep(epoch, placed)
                case k.Halt(reason=reason) if machine.deposed:
                    self.figures.deposed += 1
                    self.line(COORDINATOR, "", f"ends: {reason}")
                    self._gone(epoch)
                case k.Halt(reason=reason):
                    self._halted(reason)
                case k.Log() | k.Begun():
                    self.line(COORDINATOR, "", effect)
                case other:
                    raise TypeError(f"a coordinator has no effect {other!r}")

    def heeded(self, epoch: int) -> bool:
        """Whether what the coordinator of this epoch says and hears counts: no later one has learnt the log."""
        return epoch == self.reign or (self.taken_over and self.coordinator.recovery.accounts is None)

    def _settle(self, since: int) -> None:
        """A new coordinator has learnt the log: what it did not find never happened."""
        if self._unsettled or since < len(self.trace.log):
            self.trace.forget(min(since, len(self.trace.log)))
        self._unsettled = False

    def _halted(self, reason: str) -> None:
        """The coordinator gave up: right only when a server was silent for too long, as faults may have it."""
        limits = self.scenario.job.limits
        silent = [name for name, heard in self.heard_at.items() if self.now - heard >= limits.lease_ms]
        lost = [server.index for server in self.servers.every if server.gone or server.name in silent]
        chains = [chain for shard, chain in enumerate(self.trace.chains) if shard in self.coordinator.replicas.lost]
        seen = max((life.session.version for life in self.lives.values()), default=0)
        second = self.scenario.cuts or self.figures.losses or self.figures.drains
        twice = self.taken_over and second and seen > self.coordinator.log.version  # two faults at once
        early = self.taken_over and not self._known()
        lacking = not lost or any(set(chain) - set(lost) - self.trace.filling for chain in chains)
        if lacking and not early and not twice:
            raise Violation("Progress", f"the coordinator gave up: {reason}")
        self.line(COORDINATOR, "", f"gives up: {reason}")
        self.figures.stopped += 1
        self._stopped = True

    def _entered(self, commit: m.Commit, machine: Coordinator) -> None:
        """An update enters the log: with replicas, each of them must hold its sum."""
        if commit.contributors and self.scenario.job.replicas > 1:
            placed = [self.servers[index] for index in machine.log.servers]
            lacking = [server.index for server in placed if server.shard.replica.sum != commit.contributors]
            self.note(t.Entered(commit.seq, tuple(index for index in lacking if not self.servers[index].gone)))

    def step_session(self, life: Life, event: object) -> None:
        if life.over:
            return
        finished = life.contribution
        for effect in life.session.step(event, self.now):
            match effect:
                case k.Send(to=to, message=message):
                    blocks = message.blocks if isinstance(message, m.Stage) else ()
                    tags = life.arena if life.habits.near else {block: life.gradients[block] for block in blocks}
                    self.last_words[life.nonce].append((to, message, tags, self.succession.led_by(life.name)))
                    self.send(life.name, to, message, tags)
                case k.Fresh(version=version, clock=clock, committed=committed):
                    self.line(life.name, "", effect)
                    self._saw(life, version, clock, finished, committed)
                    life.letters.append(effect)
                case k.Leased():
                    self.line(life.name, "", effect)
                    self._saw(life, life.session.version, life.session.clock, None, False)
                    life.letters.append(effect)
                case k.Failed(kind=kind, text=text):
                    self.line(life.name, "", effect)
                    self._failed(life, kind, text)
                case k.Log():
                    self.line(life.name, "", effect)
                case k.Dial(servers):
                    self.line(life.name, "", effect)
                    life.letters.append(effect)
                    for server, _ in servers:
                        if server not in life.reached and not self.servers[server].gone:
                            found = k.Regained(server_name(server), near=life.habits.near)
                            self.after(REACHED_MS, partial(self._reached, life, server, found))
                case k.Retain(seq, _, used):
                    self.line(life.name, "", effect)
                    self._retain(life, seq, life.feedback.lost_until(used))
                case other:
                    self.line(life.name, "", other)
                    life.letters.append(other)

    def _retain(self, life: Life, seq: int, taken: Taken | None) -> None:
        """Write a residual for a snapshot."""
        file = "" if taken is None else f"{life.name}-{life.nonce}-{seq}"
        if taken is not None:
            self.retained[file] = Residual(life.habits.rank, taken)
        self.after(WRITE_MS, partial(self._retained, life, k.Retained(seq, file)))

    def _retained(self, life: Life, event: k.Retained) -> None:
        if not life.over and not self.put_off(life.name, partial(self._retained, life, event)):
            self.step_session(life, event)
            self.resume(life)

    def _reached(self, life: Life, server: int, found: k.Regained) -> None:
        if not life.over and not self.put_off(life.name, partial(self._reached, life, server, found)):
            life.reached.add(server)
            self.step_session(life, found)
            self.resume(life)

    def _seen_by(self, life: Life) -> dict[int, int]:
        """The parameters that the worker goes on with."""
        if not life.reads_in_place:
            return dict(life.parameters)
        memories = [self.servers[index].store.states for index in life.mapped.values()]
        return {block: state for states in memories for block, state in states.items()}

    def _saw(self, life: Life, version: int, clock: int, finished: Contributor | None, committed: bool) -> None:
        life.contribution = None
        states = self._seen_by(life)
        part = life.session.part
        states = {block: state for block, state in states.items() if block in part}
        self.note(t.Saw(*life.identity, version, clock, finished, committed, states, life.reads_in_place, part))

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
        received = k.Received(source, message)
        self.frozen.arrived(source, target, self.now)
        if source in self.heard_at and isinstance(message, m.Heartbeat | m.Register):
            self.heard_at[source] = self.now
        again = partial(self.arrive, source, target, message, payload, epoch)
        if self.put_off(target if target != COORDINATOR else self.office(epoch or self.reign), again):
            return
        if source == COORDINATOR and epoch is not None and epoch == self.succession.led_by(target):
            self.succession.heard(target)
        kind, _, number = target.partition("/")
        match kind:
            case "coordinator":
                epoch = epoch or self.reign
                if epoch in self.reigns and self.heeded(epoch):
                    self.note(t.Told(source, message, self.now))
                self.step_coordinator(received, epoch)
            case "server":
                self.servers.arrive(self.servers[int(number)], source, message, payload)
            case _:
                life = self.lives.get(int(number))
                if life is None:
                    return
                if isinstance(message, m.Parameters) and life.session.admits(message):
                    received = k.Received(source, self._copy(life, message, payload))
                self.step_session(life, received)
                self.resume(life)

    def _copy(self, life: Life, message: m.Parameters, payload: Payload) -> m.Message:
        """Let parameters land in a worker's memory; what is to be read where it lay may have moved."""
        store = self.servers[message.server].store
        if message.stamp:
            life.mapped[life.session.couriers.shard_of(message.server)] = message.server
        if not message.stamp:
            life.land(payload)
        elif not message.still:
            if store.stamp != message.stamp:
                who = (message.server, message.worker, message.incarnation)
                return m.Moved(*who, message.version, message.version + 1)
            life.parameters.update({block: store.states[block] for block in message.blocks})
        return message

    # --- workers --------------------------------------------------------------------------------

    def start(self, rank: int) -> None:
        """A process of this rank starts, unless one lives."""
        self.starting -= 1
        if rank in self.lives:
            return
        self._lives_started += 1
        # Of a pair of runs, the same in both: not by the order of starts. But every life has one of its own.
        lives = sum(known // 1000 == rank + 1 for known in self.last_words)
        nonce = 1000 * (rank + 1) + (lives if self.scenario.paired else self._lives_started)
        session = self.machines.session(self.scenario.job.limits)
        habits = self.scenario.workers[rank]
        feedback = Feedback(self.estates.setdefault(rank, Estate()))
        ways = (self.step_session, self.circles.meet, self.note)
        life = Life(self.scenario, habits, nonce, session, self.trace, self._rng, *ways, feedback)
        self.lives[rank] = life
        if habits.group:
            self.circles.enter(life)
        self.succession.joined(life.name)
        self.last_words[nonce] = deque(maxlen=GHOSTS_PER_DEATH)
        self.line(life.name, "", f"starts (nonce {nonce})")
        thread = life.thread()
        self._wishes[nonce] = (thread, next(thread))
        self.at(self.now + self._rng.randint(0, 20), partial(self._tick_worker, life))
        self.resume(life)

    def resume(self, life: Life) -> None:
        """Let the training thread run until it waits for what is not there yet."""
        while not life.over:
            thread, wish = self._wishes[life.nonce]
            if isinstance(wish, int):
                return  # a timer is set
            letter = next((item for item in life.letters if isinstance(item, wish)), None)
            if letter is None:
                return
            life.letters.clear()
            self._go_on(life, thread, letter)
        if self.lives.get(life.habits.rank) is life:
            self.end(life, "is done", killed=False)

    def _go_on(self, life: Life, thread: Thread, letter: object) -> None:
        try:
            wish = thread.send(letter)
        except StopIteration:
            return
        self._wishes[life.nonce] = (thread, wish)
        if isinstance(wish, int):
            self.at(self.now + wish, partial(self._wake, life, thread))

    def _wake(self, life: Life, thread: Thread) -> None:
        if not life.over and not self.put_off(life.name, partial(self._wake, life, thread)):
            self._go_on(life, thread, None)
            self.resume(life)

    def end(self, life: Life, how: str, killed: bool = True) -> None:
        life.over = True
        self.lives.pop(life.habits.rank, None)
        self.frozen.thaws.pop(life.name, None)
        self.line(life.name, "", how)
        self.note(t.Gone(*life.identity, killed))

    def _failed(self, life: Life, kind: str, text: str) -> None:
        if kind == "FencedError" and not self.scenario.paired:
            self.figures.fenced += 1
            self.end(life, "ends, because it was fenced")
            self.relaunch(life, RELAUNCH_MS)
        elif kind == "JobError" and self.frozen.may_give_up(life.name, self.now):
            self.figures.silent += 1
            self.end(life, "gives up: the coordinator is silent")
            self.relaunch(life, RELAUNCH_MS)
        else:
            raise Violation("Progress", f"{life.name} failed with {kind}: {text}")

    def relaunch(self, life: Life, span: tuple[int, int]) -> None:
        """Start what has ended again, with all of its group."""
        if life.habits.group:
            self.circles.tear(life, span)
            return
        self.starting += 1
        self.after(span, partial(self.start, life.habits.rank))

    def notice(self, node: str, event: k.Lost | k.Regained) -> None:
        """A node hears that a connection of its broke, or is back."""
        if self.put_off(node, partial(self.notice, node, event)):
            return
        self.succession.noticed(node, event)
        kind, _, number = node.partition("/")
        match kind:
            case "coordinator":
                for epoch in list(self.reigns):
                    self.step_coordinator(event, epoch)
            case "server":
                self.servers.step(self.servers[int(number)], event)
            case _:
                if (life := self.lives.get(int(number))) is not None:
                    self.step_session(life, event)
                    self.resume(life)

    def line(self, source: str, target: str, what: object, note: str = "") -> None:
        self.lines.append(Line(self.now, source, target, what, note))
