"""The servers of a simulated cluster: real shards over symbolic stores, and what goes between the two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from shoal.core import machine as k
from shoal.core import shard as sh
from shoal.core.shard import Shard
from shoal.errors import ProtocolError
from shoal.sim import facts as f
from shoal.sim.invariants import Violation
from shoal.sim.store import Arena, Store
from shoal.sim.symbols import Tag
from shoal.vocabulary import Contributor, Weighted, server_name, worker_name
from shoal.wire import messages as m
from shoal.wire.gradient import WHOLE

if TYPE_CHECKING:
    from shoal.sim.world import World

TASK_MS = (0, 12)
WRITE_MS = (1, 200)
REACHED_MS = (1, 30)  # until a connection to a server is there
SINCE_CHANCE = 0.9  # that a block is sent as what has changed in it, where that can be

# By block. Of Stage: tags, of Fill: states, of Parameters: states, or (from, to), of Forward: what is summed. What is
# lent: by life.
Payload = Mapping[Any, Any]


@dataclass
class Server:
    """A server process: its machine and its store."""

    index: int
    shard: Shard
    store: Store
    gone: bool = False  # it gave up, or was killed

    @property
    def name(self) -> str:
        return server_name(self.index)


@dataclass
class Servers:
    """All server processes there ever were, by number."""

    world: World
    rng: Random
    every: list[Server] = field(default_factory=list)
    heard_at: dict[str, int] = field(default_factory=dict)  # by server: its last sign of life that arrived

    def __getitem__(self, index: int) -> Server:
        return self.every[index]

    def __iter__(self) -> Iterator[Server]:
        return iter([server for server in self.every if not server.gone])

    def start(self, within_ms: int) -> None:
        """Another server process."""
        world, index = self.world, len(self.every)
        scenario = world.scenario
        server = Server(index, world.machines.shard(index, scenario.job.limits), Store(scenario.spec))
        self.every.append(server)
        self.heard_at[server.name] = world.now
        world.succession.joined(server.name)
        world.at(world.now + self.rng.randint(0, scenario.job.limits.tick_ms), partial(self._tick, server))
        opened = sh.Open(f"simulated:{index}", pid=100 + index, host=f"host {index % 3}")
        world.at(world.now + self.rng.randint(0, within_ms), partial(self.step, server, opened))

    def kill(self, server: Server) -> None:
        """SIGKILL, or the end of one that gave up."""
        server.gone = True
        self.world.frozen.thaws.pop(server.name, None)

    def has_heir(self, server: Server) -> bool:
        """Whether another server has all of its shard, and is not about to be taken for dead."""
        world, shard = self.world, server.shard.replica.shard
        replicas, limits = world.coordinators.leader.replicas, world.scenario.job.limits
        if replicas.shard(server.index) < 0:
            return True
        return any(
            not other.gone
            and other is not server
            and other.index in replicas.chains[shard]
            and other.index not in replicas.filling
            and world.now - self.heard_at[other.name] < limits.lease_ms // 2
            and world.frozen.until(other.name, world.now) is None
            for other in self.every
        )

    def heard(self, source: str, message: m.Message) -> None:
        """A message has come from this node, which may be a server."""
        if source in self.heard_at and isinstance(message, m.Heartbeat | m.Register):
            self.heard_at[source] = self.world.now

    def is_silent(self, server: Server) -> bool:
        """Whether it has given no sign of life for so long that it may be taken for dead."""
        return self.world.now - self.heard_at[server.name] >= self.world.scenario.job.limits.lease_ms

    def _tick(self, server: Server) -> None:
        world = self.world
        if server.gone or world.put_off(server.name, partial(self._tick, server), first=True):
            return
        self.step(server, k.Tick())
        world.succession.tick(server.name)
        world.at(world.now + world.scenario.job.limits.tick_ms, partial(self._tick, server))

    def step(self, server: Server, event: object) -> None:
        """Let a server take an event, and perform what it answers."""
        world, name = self.world, server.name
        if server.gone or world.put_off(name, partial(self.step, server, event)):
            return
        for effect in server.shard.step(event, world.now):
            match effect:
                case k.Send(to=to, message=message):
                    world.send(name, to, message)
                case k.Publish():
                    self._publish(server, effect)
                case k.Forward():
                    self._forward(server, effect)
                case k.Hold(source, _, blocks):
                    near = world.scenario.near_servers
                    server.store.hold((self[source] if near else server).store.sums, blocks)
                case k.Give():
                    self._give(server, effect)
                case k.Load(fill, wanted):
                    server.store.load(fill, wanted)
                case k.Dial(servers):
                    world.line(name, "", effect)
                    for other, _ in servers:
                        found = k.Regained(server_name(other), near=world.scenario.near_servers)
                        reached = partial(self.step, server, found)
                        world.after(REACHED_MS, reached)
                case k.Run(task=task):
                    world.line(name, "", task)
                    self._run(server, task)
                case k.Hurry():
                    world.line(name, "", effect)
                case k.Write(seq=seq, path=path):
                    world.line(name, "", effect)
                    world.after(WRITE_MS, partial(self.step, server, k.Written(seq, f"{path}/{seq}")))
                case k.Free(contributors=contributors):
                    world.line(name, "", effect)
                    world.note(f.Freed(server.index, contributors))
                    server.store.free(contributors)
                case k.Halt(reason=reason):
                    self._halt(server, reason)
                    return
                case k.Log():
                    world.line(name, "", effect)
                case other:
                    raise TypeError(f"a shard has no effect {other!r}")

    def _halt(self, server: Server, reason: str) -> None:
        """A server gives up: right only if the coordinator was silent, or gave its part to another."""
        world = self.world
        # One that leads no more may have let it go before.
        machines = (world.coordinators.leader, *world.coordinators.reigns.values())
        out = any(server.index in coordinator.replicas.gone for coordinator in machines)
        if not out and not world.frozen.may_give_up(server.name, world.now):
            raise Violation("Progress", f"{server.name} gave up: {reason}")
        world.line(server.name, "", f"gives up: {reason}")
        world.figures.silent += 1
        self.kill(server)
        world.coordinators.step(k.Lost(server.name))
        if out and reason and not world.frozen.leaderless:
            self.start(within_ms=200)

    # --- messages -------------------------------------------------------------------------------

    def arrive(self, server: Server, source: str, message: m.Message, payload: Payload) -> None:
        """A message is here, and its payload lands where it belongs."""
        store = server.store
        match message:
            case m.Stage():
                self._admit_stage(server, message, payload)
            case m.Attach(worker=worker, incarnation=incarnation) if isinstance(payload, Arena):
                store.lent[worker, incarnation] = payload
            case m.Forward(in_place=True):
                store.lent.update(payload)
            case m.Forward() if not self.world.scenario.near_servers and server.shard.admits_sum(message):
                store.sums.update(payload)
            case m.Fill():
                store.fills[message] = dict(payload)
        self.step(server, k.Received(source, message))

    def _admit_stage(self, server: Server, message: m.Stage, payload: Payload) -> None:
        try:
            if server.shard.admits(message):
                self.world.note(f.Admitted(server.index, message.contributor, server.shard.version))
                server.store.stage(message.contributor, message.blocks, payload)
        except ProtocolError as error:
            raise Violation("Progress", f"{server.name} refused a push: {error}") from None

    def _publish(self, server: Server, effect: k.Publish) -> None:
        """Send the blocks as they are now, in frames of random size."""
        states = {block: server.store.states.get(block, 0) for block in effect.blocks}  # 0: it does not have it
        self.world.note(f.Published(server.index, effect, states))
        near = server.shard.readers.shares(effect.worker, effect.incarnation)
        base = 0 if near else effect.base
        for blocks in self._frames(effect.blocks):
            stamp = server.store.stamp if near else 0
            facts = (server.index, effect.worker, effect.incarnation, effect.version, blocks, stamp)
            payload: dict[int, int | tuple[int, int]] = {}
            for block in () if near else blocks:
                payload[block] = self._since(server, base, block) if base else states[block]
            parts = payload.values()
            increments = tuple(WHOLE if isinstance(part, int) else int(part[0] != part[1]) for part in parts)
            message = m.Parameters(*facts, base, increments if base else (), effect.still)
            self.world.send(server.name, worker_name(effect.worker), message, payload)

    def _since(self, server: Server, base: int, block: int) -> int | tuple[int, int]:
        """How a block has changed: (from, to), or as a whole, where that is not remembered or by chance."""
        before, now = server.store.at(base), server.store.states.get(block, 0)
        return (before[block], now) if block in before and self.rng.random() < SINCE_CHANCE else now

    def _forward(self, server: Server, effect: k.Forward) -> None:
        """Send the sum that is held, in frames of random size, or word of where it lies; or lend what it takes."""
        if effect.in_place:
            lives = [(item.contributor.worker, item.contributor.incarnation) for item in effect.contributors]
            lent = {life: server.store.lent[life] for life in lives if life in server.store.lent}
            word = m.Forward(server.index, effect.epoch, effect.number, effect.contributors, 0, (), in_place=True)
            self.world.send(server.name, server_name(effect.to), word, lent)
            return
        memory, blocks = server.store.held
        facts = (server.index, effect.epoch, effect.number, effect.contributors, len(blocks))
        for some in [blocks] if self.world.scenario.near_servers else self._frames(blocks) or [()]:
            payload = {block: memory[block] for block in some}
            self.world.send(server.name, server_name(effect.to), m.Forward(*facts, tuple(some)), payload)

    def _give(self, server: Server, effect: k.Give) -> None:
        fill = m.Fill(server.index, effect.version, effect.updated, effect.blocks)
        states = {block: server.store.states[block] for block in effect.blocks}
        self.world.send(server.name, server_name(effect.to), fill, states)

    def _frames(self, blocks: tuple[int, ...]) -> list[tuple[int, ...]]:
        size = self.rng.randint(1, max(1, len(blocks)))
        return [blocks[first : first + size] for first in range(0, len(blocks), size)]

    # --- tasks ----------------------------------------------------------------------------------

    def _run(self, server: Server, task: k.Task) -> None:
        """Perform a task; its work is visible from its start or only at its end, by chance."""
        server.store.stamp += isinstance(task, k.Seed | k.Apply)
        before = dict(server.store.states)
        early = self._perform(server, task) if self.rng.random() < 0.5 else None
        self.world.after(TASK_MS, partial(self._finish, server, task, early))
        if early is not None and isinstance(task, k.Apply) and server.store.blocks:
            self._update(server, task.seq, before)

    def _update(self, server: Server, seq: int, before: dict[int, int]) -> None:
        """What an Apply has done so far is of some blocks only; the shard hears of them."""
        after, blocks = server.store.states, tuple(server.store.blocks)
        done = tuple(sorted(self.rng.sample(blocks, self.rng.randint(1, len(blocks)))))
        server.store.states = {block: (after if block in done else before)[block] for block in after}
        self.step(server, k.Updated(seq, done))

    def _finish(self, server: Server, task: k.Task, done: k.Done | None) -> None:
        if server.gone or self.world.put_off(server.name, partial(self._finish, server, task, done)):
            return
        if isinstance(task, k.Apply) and done is not None:
            server.store.states = dict(server.store.past[task.seq])
        done = done or self._perform(server, task)
        server.store.stamp += isinstance(task, k.Seed | k.Apply)
        self.step(server, done)

    def _perform(self, server: Server, task: k.Task) -> k.Done:
        contributors: Iterable[Weighted] = ()
        match task:
            case k.Seed(contributor=contributor, summed=False):
                contributors = (Weighted(contributor, 1.0),)
            case k.Measure(contributors=found, summed=False) | k.Apply(contributors=found, summed=False):
                contributors = found
        staged: Mapping[Contributor, Mapping[int, Tag]] = server.store.tags(contributors)
        if isinstance(task, k.Measure | k.Combine | k.Apply) and task.compensation is not None:
            given = server.store.given(task.compensation)
            alone = self.world.scenario.job.replicas == 1
            for item in task.contributors:
                self.world.note(f.MadeUp(server.index, item.contributor, task.compensation.base, given, alone))
        result = server.store.perform(task)
        if isinstance(task, k.Seed | k.Measure | k.Apply):
            states = dict(server.store.states)
            changes = states and isinstance(task, k.Seed | k.Apply)
            onlookers = [life.identity for life in self.world.workers if life.computes_on(server.index)]
            self.world.note(f.Performed(server.index, task, staged, states, tuple(onlookers) if changes else ()))
        checked = isinstance(task, k.Seed | k.Apply) and server.shard.replica.replicated
        return k.Done(task, result, checksum=server.store.checksum if checked else 0)
