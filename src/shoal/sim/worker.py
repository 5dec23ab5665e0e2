"""A simulated worker: a real session, and a training thread that runs the loop a user would write.

The thread is a generator. It gives commands to its session and yields what it waits for: a number
of milliseconds (it computes), or kinds of effects (it is parked until one comes).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from random import Random

from shoal.core import machine as k
from shoal.core import session as s
from shoal.core.session import RECEIVING
from shoal.placement import blocks_of_tensor, cut
from shoal.sim import facts as f
from shoal.sim.circles import Met
from shoal.sim.feedback import Feedback
from shoal.sim.scenario import Habits, Scenario, work_random
from shoal.sim.store import Arena
from shoal.sim.symbols import Tag
from shoal.sim.trace import Trace
from shoal.vocabulary import Contributor, Lease, worker_name

Wish = int | tuple[type[object], ...]  # compute so many ms | wait for one of these effects
Thread = Generator[Wish, object, None]

PIECES_MAX = 3  # a step pushes its blocks in up to so many pieces
WINDOW_STEPS = 4  # of the fastest worker, where slower ones take fewer


@dataclass
class Life:
    """One process of a worker: from its start to its end, however that comes."""

    scenario: Scenario
    habits: Habits
    nonce: int
    session: s.Session
    trace: Trace
    rng: Random  # of timing only; what the worker computes comes from work_random
    act: Callable[[Life, object], None]  # gives the session a command, and performs the effects
    meet: Callable[[Life], None]  # lets the others of its group know that it has joined
    note: Callable[[f.Fact], None]
    feedback: Feedback
    letters: deque[object] = field(default_factory=deque)  # effects for the thread
    parameters: dict[int, int] = field(default_factory=dict)  # block -> state, the bound memory
    gradients: dict[int, Tag] = field(default_factory=dict)  # block -> tag
    arena: Arena = field(default_factory=Arena)  # the same, in memory that near servers read
    contribution: Contributor | None = None  # finished, and not settled yet
    computations: int = 0
    steps: int = 0
    mapped: dict[int, int] = field(default_factory=dict)  # shard -> the server whose memory it reads
    reached: set[int] = field(default_factory=set)  # servers
    over: bool = False

    @property
    def name(self) -> str:
        return worker_name(self.habits.rank)

    @property
    def identity(self) -> tuple[int, int]:
        return self.habits.rank, self.session.incarnation

    @property
    def reads_in_place(self) -> bool:
        """Whether its parameters are the servers' own memory."""
        return self.habits.near and self.session.still

    @property
    def computes(self) -> bool:
        """Whether its training thread uses the parameters now."""
        return self.session.version > 0 and self.session.parked not in (*RECEIVING, "leave")

    def computes_on(self, server: int) -> bool:
        """Whether its training thread uses this server's memory now."""
        return self.reads_in_place and self.computes and server in self.mapped.values()

    def land(self, payload: Mapping[int, int | tuple[int, int]]) -> None:
        """Blocks come, or how they have changed: on top of anything else that gives what is no state."""
        for block, part in payload.items():
            if isinstance(part, int):
                self.parameters[block] = part
            elif self.parameters.get(block) == part[0]:
                self.parameters[block] = part[1]
            else:
                self.parameters[block] = hash((self.parameters.get(block, 0), part))

    def command(self, command: object) -> None:
        self.act(self, command)

    def thread(self) -> Thread:
        """The canonical loop: join, declare, seed if told so, then take samples and step until the end."""
        self.command(s.Begin(self.habits.rank, self.nonce, pid=self.nonce))
        yield (k.Dial,)
        met: object = Met(())
        if self.habits.group:
            self.meet(self)
            met = yield (Met,)
        assert isinstance(met, Met)
        self.session.recollection.keeps = self.scenario.feeds_back
        near = range(self.scenario.job.servers) if self.habits.near else ()
        self.command(s.Declare(self.scenario.spec, tuple(near), met.group))
        seeding = yield (k.Seeding,)
        yield from self._start(seeding)
        if self.scenario.dataset is None:
            yield from self._steps()
        else:
            yield from self._epochs()
        self.command(s.Leave())
        yield (k.Departed,)
        self.over = True

    def _start(self, seeding: object) -> Thread:
        """Wait for the initial parameters; push them if this worker is (or becomes) the one to do so."""
        if isinstance(seeding, k.Seeding) and not seeding.seed:
            self.command(s.Await())
            seeding = yield (k.Seeding, k.Fresh)
        if isinstance(seeding, k.Seeding):
            yield from self._push(range(len(cut(self.scenario.spec))))
            self._finish(s.Finish(samples=0, leases=(), rates=self._rates()))
            yield (k.Fresh,)
        self.feedback.halves.adopt(self.session.used)
        self._feed()

    def _feed(self) -> None:
        if self.scenario.feeds_back:
            self.note(f.Fed(self.habits.rank, self.feedback.taken))

    def _steps(self) -> Thread:
        while self.session.clock <= self.habits.stops_after:
            yield from self._step(())

    def _epochs(self) -> Thread:
        dataset = self.scenario.dataset
        assert dataset is not None
        for epoch in range(self.scenario.data_epochs):
            held: list[Lease] = []
            while True:
                self.command(s.Take(dataset, epoch))
                leased = yield (k.Leased,)
                assert isinstance(leased, k.Leased)
                if leased.lease is None:
                    break
                held.append(leased.lease)
                choice = self._random(10_000 + self.session.clock)
                if self._leaves_early():
                    return  # politely, though it holds samples
                if len(held) == 1 and choice.random() < self.habits.gathers_chance:
                    continue  # accumulate over two leases
                yield from self._step(tuple(held))
                held = []
            if held:
                yield from self._step(tuple(held))

    def _leaves_early(self) -> bool:
        return self.habits.stops_after < self.scenario.clocks and self.steps >= self.habits.stops_after

    def _step(self, leases: tuple[Lease, ...]) -> Thread:
        """One gradient: computed (perhaps anew), pushed in pieces, made ready; then fresh parameters."""
        choice = self._random(self.session.clock)
        blocks = self._used(choice)
        if choice.random() < self.habits.anew_chance:
            yield from self._push(self._used(choice))
            self.command(s.Restart())
        self.feedback.begin()
        yield from self._push(blocks)
        finish = s.Finish(
            samples=sum(lease.samples for lease in leases) if leases else choice.randint(1, 4),
            leases=tuple(lease.identity for lease in leases),
            rates=self._rates(),
            multiplier=choice.choice([1.0, 1.0, 0.5]),
            void=choice.random() < self.habits.void_chance,
            far=self.habits.far,
            steps=self._window() or 1 + self.session.clock % 3,
        )
        if not finish.void:
            self.feedback.seal(self._contribution())
        self._finish(finish)
        ahead = self._random(20_000 + self.session.clock)
        if ahead.random() < self.scenario.ahead_chance:
            yield ahead.randint(*self.habits.compute_ms)  # it takes steps of its own, and then what has come
        fresh = yield (k.Fresh,)
        assert isinstance(fresh, k.Fresh)
        self.feedback.end(fresh.committed)
        self._feed()
        self.steps += 1
        if choice.random() < self.habits.snapshot_chance:
            self.command(s.Snapshot(f"snapshot-{self.habits.rank}-{self.nonce}-{self.steps}"))
            yield (k.Snapshotted,)

    def _used(self, choice: Random) -> list[int]:
        """The blocks of the tensors that this gradient reaches, last tensor first, as backward does."""
        tensors = list(blocks_of_tensor(self.scenario.spec))
        if choice.random() < self.habits.unused_chance:
            tensors = choice.sample(tensors, choice.randint(0, len(tensors)))
        return [block for blocks in reversed(tensors) for block in blocks]

    def _push(self, blocks: list[int] | range) -> Thread:
        self.computations += 1
        self.gradients = {}
        pieces = self.rng.randint(1, PIECES_MAX)
        size = -(-len(blocks) // pieces) or 1
        for first in range(0, max(1, len(blocks)), size):
            whole_ms = self.rng.randint(*self.habits.compute_ms)
            yield whole_ms * (self._window() or WINDOW_STEPS) // WINDOW_STEPS // pieces
            piece = tuple(blocks[first : first + size])
            for block in piece:
                self.gradients[block] = (self.habits.rank, self.nonce, self.computations, block)
            self.arena.update(self.gradients)
            self.command(s.Push(piece))

    def _window(self) -> int:
        """Steps in this worker's window where they follow its pace; 0: they do not."""
        alone = self.scenario.scaled and not self.habits.group
        return max(1, int(WINDOW_STEPS * self.session.pace)) if alone else 0

    def _contribution(self) -> Contributor:
        return Contributor(self.session.worker, self.session.incarnation, self.session.clock, self.session.attempt)

    def _finish(self, finish: s.Finish) -> None:
        self.contribution = who = self._contribution()
        mine = self.session.part
        self.trace.finished[who] = {block: tag for block, tag in self.gradients.items() if who.seeds or block in mine}
        self.command(finish)

    def _random(self, number: int) -> Random:
        """Chance for what this worker does; the ranks of a group do the same."""
        rank = self.habits.group[0] if self.habits.group else self.habits.rank
        return work_random(self.scenario.seed, rank, number)

    def _rates(self) -> tuple[float, ...]:
        return (round(0.1 / (1 + self.session.clock), 6),) * len(self.scenario.spec.groups)
