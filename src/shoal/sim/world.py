"""A simulated cluster: the real machines of core, driven in virtual time over a faulty network.

One seed gives one run, to the last event: time is a heap of what happens next, chance comes from
the scenario's generators, and the machines have neither. After every event the invariants are
checked against the trace; the first that does not hold ends the run with a Violation.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from random import Random

from shoal.core import machine as k
from shoal.core import shard as sh
from shoal.core.coordinator import RUNNING, Coordinator
from shoal.core.recovery import valid
from shoal.core.session import Session
from shoal.core.shard import Shard
from shoal.errors import ProtocolError
from shoal.sim import trace as t
from shoal.sim.faults import Network
from shoal.sim.frozen import FOR_GOOD, Frozen
from shoal.sim.invariants import Violation, check
from shoal.sim.mishaps import Mishaps
from shoal.sim.scenario import Scenario
from shoal.sim.transcript import Line
from shoal.sim.worker import Life, Thread, Wish
from shoal.vocabulary import COORDINATOR, Contributor, Weighted, server_name, worker_name
from shoal.wire import messages as m

DEADLINE_MS = 60_000  # from the last fault to the end of the job
EVENTS_MAX = 200_000
TASK_MS = (0, 12)
MANIFEST_MS = (1, 20)
WRITE_MS = (1, 200)
RELAUNCH_MS = (1, 40)  # until the launcher restarts a worker that was declared dead
GHOSTS_PER_DEATH = 12
LINES_MAX = 60

Tags = dict[int, t.Tag]
Payload = Tags | dict[int, int]  # of Stage, by block | of Parameters, by block


@dataclass(frozen=True)
class Machines:
    """What the world drives; a planted fault puts another machine here."""

    coordinator: Callable[..., Coordinator] = Coordinator
    shard: Callable[..., Shard] = Shard
    session: Callable[..., Session] = Session


@dataclass
class Server:
    """A server process: its machine and its store."""

    index: int
    shard: Shard
    store: t.Store
    gone: bool = False  # it gave up


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
    breaks: int = 0


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
        self.trace = t.Trace(scenario.spec, scenario.job.servers)
        self.coordinator = self.machines.coordinator(scenario.job)
        self.servers = [
            Server(index, self.machines.shard(index, scenario.job.limits), t.Store(scenario.spec))
            for index in range(scenario.job.servers)
        ]
        self.lives: dict[int, Life] = {}
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._lives_started = 0
        self.reign = 1  # the epoch of the coordinator; what another one sent, or was sent, is lost
        self.headless = False  # there is none
        self.starting = 0  # workers that will come yet
        self._stopped = False  # for want of a server
        self._heard_at: dict[str, int] = {server_name(server.index): 0 for server in self.servers}
        self.frozen = Frozen(scenario.job.limits.lease_ms)
        self._wishes: dict[int, tuple[Thread, Wish]] = {}  # by nonce
        self.last_words: dict[int, deque[tuple[str, m.Message, Payload]]] = {}  # by nonce
        self._rng = Random(hash((scenario.seed, network_seed, 7)))

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
            self._note(t.Ended({server.index: tuple(server.store.staged) for server in self.servers}))

    # --- the coordinator's end, and another one's beginning ----------------------------------------

    @property
    def begun(self) -> bool:
        """Whether the log has an entry, so that there is something to take over."""
        return bool(self.trace.log)

    def fall(self) -> None:
        """The coordinator is gone. An entry that reached no shard never happened."""
        self.figures.falls += 1
        self.headless = True
        self.reign += 1
        self.line(COORDINATOR, "", "is killed")
        entries: list[m.Commit] = []
        for server in self.servers:
            entries += [*server.shard.pending.values(), *(kept.commit for kept in server.shard.kept.values())]
            entries += [server.shard.progress.commit] if server.shard.progress is not None else []
        last, known = max(server.shard.version for server in self.servers), valid(entries)
        self.trace.forget(next(seq for seq in itertools.count(last) if seq + 1 not in known))

    def rise(self) -> None:
        """A coordinator of the next epoch begins."""
        self.headless = False
        self.coordinator = self.machines.coordinator(self.scenario.job, epoch=self.reign, recovers=True)
        self.line(COORDINATOR, "", f"of epoch {self.reign} begins")

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
        tick_ms = scenario.job.limits.tick_ms
        self.at(0, self._tick_coordinator)
        for server in self.servers:
            self.at(self._rng.randint(0, tick_ms), partial(self._tick_server, server))
            opened = sh.Open(f"simulated:{server.index}", pid=100 + server.index)
            self.at(self._rng.randint(0, 50), partial(self.step_server, server, opened))
        for habits in scenario.workers:
            self.starting += 1
            self.at(habits.joins_at_ms, partial(self._start, habits.rank))
        Mishaps(self, self._rng).prepare()

    def _over(self) -> bool:
        """No worker lives, will come, or is still believed to live; every shard has applied the whole log."""
        return (
            not self.lives
            and not self.starting
            and not self.headless
            and self.coordinator.phase == RUNNING
            and not self.coordinator.membership.members
            and all(server.shard.version == len(self.trace.log) for server in self.servers)
            and all(server.shard.running is None and not server.shard.writing for server in self.servers)
        )

    def _state(self) -> str:
        sessions = ", ".join(
            f"{life.name} is parked for {life.session.parked or 'nothing'} at clock {life.session.clock}"
            for life in self.lives.values()
        )
        shards = ", ".join(f"server/{server.index} is at version {server.shard.version}" for server in self.servers)
        return f"the coordinator waits for {self.coordinator.waiting!r}; {sessions or 'no worker lives'}; {shards}"

    def _note(self, fact: t.Fact) -> None:
        check(self.trace, fact)
        self.trace.remember(fact)

    # --- steps of the machines ------------------------------------------------------------------

    def must_be_deserted(self) -> None:
        """The coordinator is stopped for good, and everybody has had the time to notice."""
        waiting = [server_name(server.index) for server in self.servers if not server.gone]
        waiting += [life.name for life in self.lives.values() if life.session.incarnation >= 0]
        if waiting:
            raise Violation("Progress", f"{', '.join(waiting)} still waits for a coordinator that is stopped for good")
        self.figures.stopped += 1
        self._stopped = True

    def _tick_coordinator(self) -> None:
        if self.put_off(COORDINATOR, self._tick_coordinator, first=True):
            return
        self.step_coordinator(k.Tick())
        self.at(self.now + self.scenario.job.limits.tick_ms, self._tick_coordinator)

    def _tick_server(self, server: Server) -> None:
        if server.gone:
            return
        self.step_server(server, k.Tick())
        self.at(self.now + self.scenario.job.limits.tick_ms, partial(self._tick_server, server))

    def _tick_worker(self, life: Life) -> None:
        if not life.over and not self.put_off(life.name, partial(self._tick_worker, life), first=True):
            self.step_session(life, k.Tick())
            self.resume(life)
            self.at(self.now + self.scenario.job.limits.tick_ms, partial(self._tick_worker, life))

    def step_coordinator(self, event: object) -> None:
        if self.headless:
            return
        if self.put_off(COORDINATOR, partial(self.step_coordinator, event)):
            return
        for effect in self.coordinator.step(event, self.now):
            match effect:
                case k.Send(to=to, message=message):
                    self._note(t.Said(to, message))
                    self._send(COORDINATOR, to, message)
                case k.Manifest(version=version):
                    self.line(COORDINATOR, "", effect)
                    recorded = partial(self.step_coordinator, k.Recorded(version))
                    self.after(MANIFEST_MS, partial(self._unless_over, self.reign, recorded))
                case k.Halt(reason=reason):
                    self._halted(reason)
                case k.Log() | k.Begun():
                    self.line(COORDINATOR, "", effect)
                case other:
                    raise TypeError(f"a coordinator has no effect {other!r}")

    def _halted(self, reason: str) -> None:
        """The coordinator gave up: right only when a server was silent for too long, as faults may have it."""
        limits = self.scenario.job.limits
        if self.reign > 1 and not self.trace.log:
            self.line(COORDINATOR, "", f"gives up: {reason}")
            self.figures.stopped += 1
            self._stopped = True
            return
        silent = [name for name, heard in self._heard_at.items() if self.now - heard >= limits.lease_ms]
        if not silent and not any(server.gone for server in self.servers):
            raise Violation("Progress", f"the coordinator gave up: {reason}")
        self.line(COORDINATOR, "", f"gives up: {reason}")
        self.figures.stopped += 1
        self._stopped = True

    def step_server(self, server: Server, event: object) -> None:
        name = server_name(server.index)
        if server.gone:
            return
        for effect in server.shard.step(event, self.now):
            match effect:
                case k.Send(to=to, message=message):
                    self._send(name, to, message)
                case k.Publish():
                    self._publish(server, effect)
                case k.Run(task=task):
                    self.line(name, "", task)
                    self._run(server, task)
                case k.Hurry():
                    self.line(name, "", effect)
                case k.Write(seq=seq, path=path):
                    self.line(name, "", effect)
                    self.after(WRITE_MS, partial(self.step_server, server, k.Written(seq, f"{path}/{seq}")))
                case k.Free(contributors=contributors):
                    self.line(name, "", effect)
                    self._note(t.Freed(server.index, contributors))
                    server.store.free(contributors)
                case k.Halt(reason=reason) if not self.frozen.may_give_up(name, self.now):
                    raise Violation("Progress", f"{name} gave up: {reason}")
                case k.Halt(reason=reason):
                    self.line(name, "", f"gives up: {reason}")
                    self.figures.silent += 1
                    server.gone = True
                    self.step_coordinator(k.Lost(name))
                case k.Log():
                    self.line(name, "", effect)
                case other:
                    raise TypeError(f"a shard has no effect {other!r}")

    def step_session(self, life: Life, event: object) -> None:
        if life.over:
            return
        finished = life.contribution
        for effect in life.session.step(event, self.now):
            match effect:
                case k.Send(to=to, message=message):
                    blocks = message.blocks if isinstance(message, m.Stage) else ()
                    tags = life.arena if life.habits.near else {block: life.gradients[block] for block in blocks}
                    self.last_words[life.nonce].append((to, message, tags))
                    self._send(life.name, to, message, tags)
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
                case other:
                    self.line(life.name, "", other)
                    life.letters.append(other)

    def _seen_by(self, life: Life) -> dict[int, int]:
        """The parameters that the worker goes on with."""
        if not life.reads_in_place:
            return dict(life.parameters)
        return {block: state for server in self.servers for block, state in server.store.states.items()}

    def _saw(self, life: Life, version: int, clock: int, finished: Contributor | None, committed: bool) -> None:
        life.contribution = None
        states = self._seen_by(life)
        self._note(t.Saw(*life.identity, version, clock, finished, committed, states, life.reads_in_place))

    # --- messages -------------------------------------------------------------------------------

    def _send(self, source: str, target: str, message: m.Message, payload: Payload | None = None) -> None:
        arrivals = self.network.arrivals(source, target, self.now)
        self.line(source, target, message, "" if arrivals else "lost")
        led = COORDINATOR in (source, target)
        for when in arrivals:
            arrive = partial(self.arrive, source, target, message, {} if payload is None else payload)
            self.at(when, partial(self._unless_over, self.reign, arrive) if led else arrive)

    def _unless_over(self, reign: int, arrive: Callable[[], None]) -> None:
        """What goes to or from a coordinator goes down with its connections."""
        if reign == self.reign:
            arrive()

    def arrive(self, source: str, target: str, message: m.Message, payload: Payload) -> None:
        received = k.Received(source, message)
        self.frozen.arrived(source, target, self.now)
        if source in self._heard_at and isinstance(message, m.Heartbeat | m.Register):
            self._heard_at[source] = self.now
        if self.put_off(target, partial(self.arrive, source, target, message, payload)):
            return
        kind, _, number = target.partition("/")
        match kind:
            case "coordinator":
                if not self.headless:
                    self._note(t.Told(source, message))
                self.step_coordinator(received)
            case "server":
                server = self.servers[int(number)]
                if isinstance(message, m.Stage):
                    self._admit_stage(server, message, payload)
                if isinstance(message, m.Attach) and isinstance(payload, t.Arena):
                    server.store.lent[message.worker, message.incarnation] = payload
                self.step_server(server, received)
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
        store = self.servers[message.shard].store
        if not message.stamp:
            life.parameters.update(payload)  # type: ignore[arg-type]  # states, for Parameters
        elif not life.reads_in_place:
            if store.stamp != message.stamp:
                return m.Moved(message.shard, message.worker, message.incarnation, message.version, message.version + 1)
            life.parameters.update({block: store.states[block] for block in message.blocks})
        return message

    def _admit_stage(self, server: Server, message: m.Stage, payload: Payload) -> None:
        try:
            if server.shard.admits(message):
                self._note(t.Admitted(server.index, message.contributor, server.shard.version))
                server.store.stage(message.contributor, message.blocks, payload)  # type: ignore[arg-type]  # tags
        except ProtocolError as error:
            raise Violation("Progress", f"server/{server.index} refused a push: {error}") from None

    def _publish(self, server: Server, effect: k.Publish) -> None:
        """Send the blocks as they are now, in frames of random size."""
        states = {block: server.store.states[block] for block in effect.blocks}
        self._note(t.Published(server.index, effect, states))
        near = server.shard.near.get(effect.worker) == effect.incarnation
        size = self._rng.randint(1, max(1, len(effect.blocks)))
        for first in range(0, len(effect.blocks), size):
            blocks = effect.blocks[first : first + size]
            stamp = server.store.stamp if near else 0
            message = m.Parameters(server.index, effect.worker, effect.incarnation, effect.version, blocks, stamp)
            payload = {} if near else {block: states[block] for block in blocks}
            self._send(server_name(server.index), worker_name(effect.worker), message, payload)

    def _run(self, server: Server, task: k.Task) -> None:
        """Perform a task; its work is visible from its start or only at its end, by chance."""
        server.store.stamp += isinstance(task, k.Seed | k.Apply)
        if self._rng.random() < 0.5:
            self.after(TASK_MS, partial(self._finish, server, task, self._perform(server, task)))
        else:
            self.after(TASK_MS, partial(self._finish, server, task, None))

    def _finish(self, server: Server, task: k.Task, done: k.Done | None) -> None:
        done = done or self._perform(server, task)
        server.store.stamp += isinstance(task, k.Seed | k.Apply)
        self.step_server(server, done)

    def _perform(self, server: Server, task: k.Task) -> k.Done:
        contributors: Iterable[Weighted] = ()
        match task:
            case k.Seed(contributor=contributor):
                contributors = (Weighted(contributor, 1.0),)
            case k.Measure(contributors=found) | k.Apply(contributors=found):
                contributors = found
        staged = server.store.tags(contributors)
        result = server.store.perform(task)
        if isinstance(task, k.Seed | k.Measure | k.Apply):
            states = dict(server.store.states)
            changes = states and isinstance(task, k.Seed | k.Apply)
            onlookers = [life.identity for life in self.lives.values() if life.reads_in_place and life.computes]
            self._note(t.Performed(server.index, task, staged, states, tuple(onlookers) if changes else ()))
        return k.Done(task, result)

    # --- workers --------------------------------------------------------------------------------

    def _start(self, rank: int) -> None:
        self.starting -= 1
        if rank in self.lives:
            return
        self._lives_started += 1
        nonce = 1000 * (rank + 1) + (0 if self.scenario.paired else self._lives_started)
        session = self.machines.session(self.scenario.job.limits)
        habits = self.scenario.workers[rank]
        life = Life(self.scenario, habits, nonce, session, self.trace, self._rng, self.step_session)
        self.lives[rank] = life
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
        self._note(t.Gone(*life.identity, killed))

    def _failed(self, life: Life, kind: str, text: str) -> None:
        if kind == "FencedError" and not self.scenario.paired:
            self.figures.fenced += 1
            self.end(life, "ends, because it was fenced")
            self.relaunch(life.habits.rank, RELAUNCH_MS)
        elif kind == "JobError" and self.frozen.may_give_up(life.name, self.now):
            self.figures.silent += 1
            self.end(life, "gives up: the coordinator is silent")
            self.relaunch(life.habits.rank, RELAUNCH_MS)
        else:
            raise Violation("Progress", f"{life.name} failed with {kind}: {text}")

    def relaunch(self, rank: int, span: tuple[int, int]) -> None:
        self.starting += 1
        self.after(span, partial(self._start, rank))

    def line(self, source: str, target: str, what: object, note: str = "") -> None:
        self.lines.append(Line(self.now, source, target, what, note))
