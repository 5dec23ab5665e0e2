"""The workers of a simulated cluster: real sessions under training threads, started, resumed and ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from shoal.core import machine as k
from shoal.sim import facts as f
from shoal.sim.feedback import Estate, Feedback, Residual, Taken
from shoal.sim.invariants import Violation
from shoal.sim.servers import REACHED_MS, WRITE_MS, Payload
from shoal.sim.worker import Life, Thread, Wish
from shoal.vocabulary import Contributor, server_name
from shoal.wire import messages as m

if TYPE_CHECKING:
    from shoal.sim.world import World

RELAUNCH_MS = (1, 40)  # until the launcher restarts a worker that was declared dead
GHOSTS_PER_DEATH = 12


class Workers:
    """All of a world; those that live are iterated over."""

    def __init__(self, world: World, rng: Random) -> None:
        self._world, self._rng = world, rng
        self.lives: dict[int, Life] = {}  # by rank
        self.starting = 0  # that will come yet
        self.last_words: dict[int, deque[tuple[str, m.Message, Payload, int]]] = {}  # by nonce
        self.retained: dict[str, Residual] = {}  # by file of a snapshot
        self._estates: dict[int, Estate] = {}  # by rank
        self._wishes: dict[int, tuple[Thread, Wish]] = {}  # by nonce
        self._started = 0

    def __iter__(self) -> Iterator[Life]:
        return iter(self.lives.values())

    def prepare(self) -> None:
        """Those that the scenario begins with, or has join, will come."""
        for habits in self._world.scenario.workers:
            self.starting += 1
            self._world.at(habits.joins_at_ms, partial(self.start, habits.rank))

    def start(self, rank: int) -> None:
        """A process of this rank starts, unless one lives."""
        self.starting -= 1
        if rank in self.lives:
            return
        self._started += 1
        world = self._world
        # Of a pair of runs, the same in both: not by the order of starts. But every life has one of its own.
        lives = sum(known // 1000 == rank + 1 for known in self.last_words)
        nonce = 1000 * (rank + 1) + (lives if world.scenario.paired else self._started)
        session = world.machines.session(world.scenario.job.limits)
        habits = world.scenario.workers[rank]
        feedback = Feedback(self._estates.setdefault(rank, Estate()))
        ways = (self.step, world.circles.meet, world.note)
        life = Life(world.scenario, habits, nonce, session, world.trace, self._rng, *ways, feedback)
        self.lives[rank] = life
        if habits.group:
            world.circles.enter(life)
        world.succession.joined(life.name)
        self.last_words[nonce] = deque(maxlen=GHOSTS_PER_DEATH)
        world.line(life.name, "", f"starts (nonce {nonce})")
        thread = life.thread()
        self._wishes[nonce] = (thread, next(thread))
        world.at(world.now + self._rng.randint(0, 20), partial(self._tick, life))
        self.resume(life)

    def arrive(self, rank: int, source: str, message: m.Message, payload: Payload) -> None:
        """A message is here, and its payload lands where it belongs."""
        life = self.lives.get(rank)
        if life is None:
            return
        if isinstance(message, m.Parameters) and life.session.admits(message):
            message = self._copy(life, message, payload)
        self.take(life, k.Received(source, message))

    def take(self, life: Life, event: object) -> None:
        """A session takes an event, and the training thread goes on as far as it can."""
        self.step(life, event)
        self.resume(life)

    def step(self, life: Life, event: object) -> None:
        """Let a session take an event, and perform what it answers."""
        if life.over:
            return
        world, finished = self._world, life.contribution
        for effect in life.session.step(event, world.now):
            match effect:
                case k.Send(to=to, message=message):
                    blocks = message.blocks if isinstance(message, m.Stage) else ()
                    tags = life.arena if life.habits.near else {block: life.gradients[block] for block in blocks}
                    self.last_words[life.nonce].append((to, message, tags, world.succession.led_by(life.name)))
                    world.send(life.name, to, message, tags)
                case k.Fresh(version=version, clock=clock, committed=committed):
                    world.line(life.name, "", effect)
                    self._saw(life, version, clock, finished, committed)
                    life.letters.append(effect)
                case k.Leased():
                    world.line(life.name, "", effect)
                    self._saw(life, life.session.version, life.session.clock, None, False)
                    life.letters.append(effect)
                case k.Failed(kind=kind, text=text):
                    world.line(life.name, "", effect)
                    self._failed(life, kind, text)
                case k.Log():
                    world.line(life.name, "", effect)
                case k.Dial(servers):
                    world.line(life.name, "", effect)
                    life.letters.append(effect)
                    for server, _ in servers:
                        if server not in life.reached and not world.servers[server].gone:
                            found = k.Regained(server_name(server), near=life.habits.near)
                            world.after(REACHED_MS, partial(self._reached, life, server, found))
                case k.Retain(seq, _, used):
                    world.line(life.name, "", effect)
                    self._retain(life, seq, life.feedback.lost_until(used))
                case other:
                    world.line(life.name, "", other)
                    life.letters.append(other)

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

    def end(self, life: Life, how: str, killed: bool = True) -> None:
        """A process has ended."""
        life.over = True
        self.lives.pop(life.habits.rank, None)
        self._world.frozen.thaws.pop(life.name, None)
        self._world.line(life.name, "", how)
        self._world.note(f.Gone(*life.identity, killed))

    def relaunch(self, life: Life, span: tuple[int, int]) -> None:
        """Start what has ended again, with all of its group."""
        if life.habits.group:
            self._world.circles.tear(life, span)
            return
        self.starting += 1
        self._world.after(span, partial(self.start, life.habits.rank))

    # --- what the training thread waits for -----------------------------------------------------

    def _tick(self, life: Life) -> None:
        world = self._world
        if not life.over and not world.put_off(life.name, partial(self._tick, life), first=True):
            self.step(life, k.Tick())
            world.succession.tick(life.name)
            self.resume(life)
            world.at(world.now + world.scenario.job.limits.tick_ms, partial(self._tick, life))

    def _go_on(self, life: Life, thread: Thread, letter: object) -> None:
        try:
            wish = thread.send(letter)
        except StopIteration:
            return
        self._wishes[life.nonce] = (thread, wish)
        if isinstance(wish, int):
            self._world.at(self._world.now + wish, partial(self._wake, life, thread))

    def _wake(self, life: Life, thread: Thread) -> None:
        if not life.over and not self._world.put_off(life.name, partial(self._wake, life, thread)):
            self._go_on(life, thread, None)
            self.resume(life)

    # --- what sessions ask for ------------------------------------------------------------------

    def _copy(self, life: Life, message: m.Parameters, payload: Payload) -> m.Message:
        """Let parameters land in a worker's memory; what is to be read where it lay may have moved."""
        store = self._world.servers[message.server].store
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

    def _saw(self, life: Life, version: int, clock: int, finished: Contributor | None, committed: bool) -> None:
        life.contribution = None
        states = self._seen_by(life)
        part = life.session.part
        states = {block: state for block, state in states.items() if block in part}
        seen = f.Saw(*life.identity, version, clock, finished, committed, states, life.reads_in_place, part)
        self._world.note(seen)

    def _seen_by(self, life: Life) -> dict[int, int]:
        """The parameters that the worker goes on with."""
        if not life.reads_in_place:
            return dict(life.parameters)
        memories = [self._world.servers[index].store.states for index in life.mapped.values()]
        return {block: state for states in memories for block, state in states.items()}

    def _reached(self, life: Life, server: int, found: k.Regained) -> None:
        if not life.over and not self._world.put_off(life.name, partial(self._reached, life, server, found)):
            life.reached.add(server)
            self.take(life, found)

    def _retain(self, life: Life, seq: int, taken: Taken | None) -> None:
        """Write a residual for a snapshot."""
        file = "" if taken is None else f"{life.name}-{life.nonce}-{seq}"
        if taken is not None:
            self.retained[file] = Residual(life.habits.rank, taken)
        self._world.after(WRITE_MS, partial(self._retained, life, k.Retained(seq, file)))

    def _retained(self, life: Life, event: k.Retained) -> None:
        if not life.over and not self._world.put_off(life.name, partial(self._retained, life, event)):
            self.take(life, event)

    def _failed(self, life: Life, kind: str, text: str) -> None:
        world = self._world
        if kind == "FencedError" and not world.scenario.paired:
            world.figures.fenced += 1
            self.end(life, "ends, because it was fenced")
            self.relaunch(life, RELAUNCH_MS)
        elif kind == "JobError" and world.frozen.may_give_up(life.name, world.now):
            world.figures.silent += 1
            self.end(life, "gives up: the coordinator is silent")
            self.relaunch(life, RELAUNCH_MS)
        else:
            raise Violation("Progress", f"{life.name} failed with {kind}: {text}")
