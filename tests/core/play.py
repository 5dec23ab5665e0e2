"""Plays the machines of a job by hand, one message at a time, and writes down what they say.

    play = Play(workers=2, servers=2)
    play.form()                                  # everyone joins, declares, is seeded
    play.do(0, Finish(...)); play.deliver()      # a command, and all that follows from it
    play.lose(m.Staged)                          # what is in flight of this type is gone
    play.wait(500)                               # time passes: machines look at their deadlines

No numbers move: tasks of the shards are done at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.config import Job, Limits
from shoal.core import machine as k
from shoal.core import session as s
from shoal.core.coordinator import Coordinator
from shoal.core.session import Session
from shoal.core.shard import Open, Shard
from shoal.optim import SGD
from shoal.policy import Policy, Sync
from shoal.sim.transcript import in_words
from shoal.vocabulary import COORDINATOR, TableSpec, TensorSpec, node_number, server_name, worker_name
from shoal.wire import messages as m

TRANSCRIPTS = Path(__file__).with_name("transcripts")
LIMITS = Limits(resend_ms=500, lease_ms=5_000, grace_ms=300, heartbeat_ms=100_000, wait_ms=60_000)


def small_table(policy: Policy | None = None, clip_norm: float | None = None) -> TableSpec:
    """Two parameters, a block each: a on the first of two servers, b on the second."""
    rule = SGD(lr=0.1)
    tensors = tuple(TensorSpec(name, (4,), "float32", 0) for name in "ab")
    return TableSpec(tensors, rule.name, (rule.settings,), (policy or Sync()).spec, clip_norm)


@dataclass
class Play:
    """A whole job on a table top."""

    workers: int = 2
    servers: int = 2
    spec: TableSpec = field(default_factory=small_table)
    now: int = 0
    lines: list[str] = field(default_factory=list)
    flight: list[tuple[str, str, m.Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        job = Job("play", workers=self.workers, servers=self.servers, limits=LIMITS)
        self.coordinator = Coordinator(job)
        self.shards = {server_name(index): Shard(index, LIMITS) for index in range(self.servers)}
        self.sessions: dict[str, Session] = {}
        self.gone: set[str] = set()  # killed: their messages are lost on both ways

    # --- what a test does -------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A heading in the transcript."""
        self.lines += ["", f"# {text}"] if self.lines else [f"# {text}"]

    def form(self, name: str = "") -> None:
        """Servers register, workers join, declare and begin at clock 1. Not written down unless named."""
        written = self.lines
        self.lines = written if name else []
        if name:
            self.say(name)
        for index, (node, shard) in enumerate(self.shards.items()):
            self._perform(node, shard.step(Open(f"address/{index}", 100 + index), self.now))
        self.deliver()
        for worker in range(self.workers):
            self.join(worker)
        for worker in range(self.workers):
            self.do(worker, s.Declare(self.spec))
            self.deliver()
        seeder = next(worker for worker in range(self.workers) if self._seeds(worker))
        for worker in range(self.workers):
            if worker != seeder:
                self.do(worker, s.Await())
        self.do(seeder, s.Push((0, 1)))
        self.do(seeder, s.Finish(1, (), ()))
        self.deliver()
        self.lines = written

    def join(self, worker: int, nonce: int = 0) -> None:
        self.gone.discard(worker_name(worker))
        self.sessions[worker_name(worker)] = Session(LIMITS)
        self.do(worker, s.Begin(worker, nonce or 1000 + worker, 200 + worker))
        self.deliver()

    def enter(self, worker: int, nonce: int = 0) -> None:
        """Join a job that runs, and begin."""
        self.join(worker, nonce)
        self.do(worker, s.Declare(self.spec))
        self.deliver()
        self.do(worker, s.Await())
        self.deliver()

    def do(self, worker: int, command: object) -> None:
        node = worker_name(worker)
        self.lines.append(f"{node:<25} : {in_words(command)}")
        self._perform(node, self.sessions[node].step(command, self.now))

    def push(self, worker: int, samples: int = 1, leases: tuple[int, ...] = ()) -> None:
        """One clock's gradient, and the wait for its commit."""
        self.do(worker, s.Push((0, 1)))
        self.do(worker, s.Finish(samples, leases, (0.1,)))

    def deliver(self, *kinds: type[m.Message]) -> None:
        """Deliver what is in flight, in order, and what follows; only messages of these types if any are given."""
        while chosen := next((item for item in self.flight if not kinds or isinstance(item[2], kinds)), None):
            self.flight.remove(chosen)
            self._hand_over(*chosen)

    def lose(self, kind: type[m.Message], to: str = "") -> None:
        """What is in flight of this type is gone."""
        for item in [item for item in self.flight if isinstance(item[2], kind) and to in item[1]]:
            self.flight.remove(item)
            self.lines.append(f"{item[0]:>11} -> {item[1]:<11} x {in_words(item[2])}")

    def again(self, kind: type[m.Message]) -> None:
        """What is in flight of this type arrives twice."""
        self.flight += [item for item in self.flight if isinstance(item[2], kind)]

    def kill(self, worker: int) -> None:
        """SIGKILL: it is silent from now on, and its connections break."""
        node = worker_name(worker)
        self.gone.add(node)
        self.flight = [item for item in self.flight if node not in item[:2]]
        self.lines.append(f"{node:<25} : killed")
        self._perform(COORDINATOR, self.coordinator.step(k.Lost(node), self.now))

    def succeed(self) -> None:
        """SIGKILL of the coordinator; another one takes its place, and everybody's connection to it comes back."""
        self.flight = [item for item in self.flight if COORDINATOR not in item[:2]]
        before = self.coordinator
        self.lines.append(f"{COORDINATOR:<25} : killed; another one takes its place")
        self.coordinator = Coordinator(before.job, before.epoch + 1, recovers=True)
        for event in (k.Lost(COORDINATOR), k.Regained(COORDINATOR)):
            for node in [*self.shards, *self.sessions]:
                if node not in self.gone:
                    self._perform(node, self._machine(node).step(event, self.now))

    def wait(self, ms: int) -> None:
        self.now += ms
        self.lines.append(f"{'':<25} . {ms} ms pass")
        for node in [*self.sessions, *self.shards, COORDINATOR]:
            if node not in self.gone:
                self._perform(node, self._machine(node).step(k.Tick(), self.now))

    def check(self, name: str) -> None:
        """The transcript must read as the file says. SHOAL_REWRITE=1 writes the file anew; read it then."""
        text = "\n".join(self.lines) + "\n"
        path = TRANSCRIPTS / f"{name}.txt"
        if os.environ.get("SHOAL_REWRITE"):
            path.write_text(text)
        assert text.splitlines() == path.read_text().splitlines()

    def ask(self, message: m.Message) -> None:
        """A visitor asks the coordinator; the answer is written down."""
        visitor = "visitor/1"
        self.lines.append(f"{visitor:>11} -> {COORDINATOR:<11} : {in_words(message)}")
        effects = self.coordinator.step(k.Received(visitor, message), self.now)
        for effect in effects:
            if isinstance(effect, k.Send) and effect.to == visitor:
                self.lines.append(f"{COORDINATOR:>11} -> {visitor:<11} : {in_words(effect.message)}")
        self._perform(COORDINATOR, [effect for effect in effects if getattr(effect, "to", "") != visitor])

    def status(self) -> m.Status:
        """As a visitor is told."""
        (told,) = self.coordinator.step(k.Received("visitor/1", m.StatusRequest()), self.now)
        assert isinstance(told, k.Send) and isinstance(told.message, m.Status)
        return told.message

    # --- helpers ----------------------------------------------------------------------------------

    def _seeds(self, worker: int) -> bool:
        return self.coordinator.membership.members[worker].seeder

    def _machine(self, node: str) -> Session | Shard | Coordinator:
        return self.coordinator if node == COORDINATOR else self.shards.get(node) or self.sessions[node]

    def _hand_over(self, source: str, target: str, message: m.Message) -> None:
        if target in self.gone or (target not in self.sessions and target not in self.shards and target != COORDINATOR):
            return
        self.lines.append(f"{source:>11} -> {target:<11} : {in_words(message)}")
        self._perform(target, self._machine(target).step(k.Received(source, message), self.now))

    def _perform(self, node: str, effects: Sequence[k.Effect]) -> None:
        for effect in effects:
            match effect:
                case k.Keep() | k.Send(message=m.Heartbeat()):
                    pass
                case k.Send(to, message):
                    self.flight.append((node, to, message))
                case k.Publish(worker, incarnation, version, blocks):
                    parameters = m.Parameters(node_number(node), worker, incarnation, version, blocks)
                    self.flight.append((node, worker_name(worker), parameters))
                case k.Run(task):
                    self._run(node, task)
                case k.Write(seq):
                    # Files are named by server and version.
                    self.lines.append(f"{node:<25} * {in_words(effect)}")
                    self._perform(node, self.shards[node].step(k.Written(seq, f"{node}-{seq}"), self.now))
                case _:
                    self.lines.append(f"{node:<25} * {in_words(effect)}")

    def _run(self, node: str, task: k.Task) -> None:
        """Every block's gradient has norm 1."""
        shard = self.shards[node]
        result: tuple[tuple[int, tuple[float, ...]], ...] = ()
        if isinstance(task, k.Measure):
            result = tuple((block, (1.0,)) for block in shard.blocks)
        if not isinstance(task, k.CreateTable):
            self.lines.append(f"{node:<25} * {in_words(task)}")
        self._perform(node, shard.step(k.Done(task, result), self.now))
