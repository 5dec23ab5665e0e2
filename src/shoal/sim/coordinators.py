"""The coordinators of a simulated cluster: the one that leads, and former ones that may still live."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shoal.core import machine as k
from shoal.core.coordinator import Coordinator
from shoal.core.recovery import valid
from shoal.sim import facts as f
from shoal.sim.invariants import Violation
from shoal.vocabulary import COORDINATOR
from shoal.wire import messages as m

if TYPE_CHECKING:
    from shoal.sim.world import World

MANIFEST_MS = (1, 20)


class Coordinators:
    """All of a world, by epoch."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.reign = world.succession.begin()  # the epoch of the one that leads, or led last
        self.leader: Coordinator = world.machines.coordinator(world.scenario.job, epoch=self.reign)  # or led last
        self.reigns = {self.reign: self.leader}  # those that live
        self._taken_over = False  # some coordinator has taken another one's place
        self._unsettled = False  # what the last one did is not all known to the one that leads now

    @property
    def headless(self) -> bool:
        """Nobody leads: the one that led last is gone."""
        return self.reign not in self.reigns

    @property
    def recoverable(self) -> bool:
        """Whether the servers that live know all that some worker has seen of the log."""
        return self._known() >= max((life.session.version for life in self._world.workers), default=0)

    @property
    def placed(self) -> list[int]:
        """Servers that follow the log."""
        return [index for index in self.leader.replicas.servers if not self._world.servers[index].gone]

    def office(self, epoch: int) -> str:
        """The name of a coordinator's node, for what stops it."""
        return COORDINATOR if epoch == self.reign else f"coordinator of epoch {epoch}"

    def is_idle(self, epoch: int, action: Callable[[], None]) -> bool:
        """Whether this one is gone, or stopped: then the action comes when it goes on."""
        return epoch not in self.reigns or self._world.put_off(self.office(epoch), action)

    def start(self) -> None:
        """The first one begins."""
        self._world.at(0, partial(self._tick, self.reign) if self._world.succession.on else self._tick)
        self._world.succession.inaugurate(self.reign)

    def fall(self) -> None:
        """The coordinator is gone. An entry that reached no shard never happened."""
        self._world.figures.falls += 1
        self._world.line(COORDINATOR, "", "is killed")
        self._gone(self.reign)
        if not self._world.succession.on:
            self.reign += 1

    def rise(self, epoch: int) -> None:
        """A coordinator of the next epoch begins; the one before may still live."""
        world = self._world
        thaw = world.frozen.thaws.pop(COORDINATOR, None)
        former, self.reign, self._taken_over = self.reign, epoch, True
        if thaw is not None:
            world.frozen.thaws[self.office(former)] = thaw
        self._unsettled = self._unsettled or bool(self.reigns)
        self.leader = world.machines.coordinator(world.scenario.job, epoch=epoch, recovers=True)
        self.reigns[epoch] = self.leader
        world.line(COORDINATOR, "", f"of epoch {epoch} begins")
        world.succession.inaugurate(epoch)
        if world.succession.on:
            self._tick(epoch)

    def arrive(self, source: str, message: m.Message, epoch: int) -> None:
        """A message is here."""
        if epoch in self.reigns and self._heeded(epoch):
            self._world.note(f.Told(source, message, self._world.now))
        self.step(k.Received(source, message), epoch)

    def step(self, event: object, epoch: int | None = None) -> None:
        """Let a coordinator take an event, and perform what it answers. epoch: its own; None: the one that leads."""
        world, epoch = self._world, self.reign if epoch is None else epoch
        if self.is_idle(epoch, partial(self.step, event, epoch)):
            return
        machine = self.reigns[epoch]
        learning = machine.recovery.accounts is None
        effects = machine.step(event, world.now)
        if learning and machine.recovery.accounts is not None and epoch == self.reign:
            self._settle(machine.log.since)
        for effect in effects:
            match effect:
                case k.Send(to=to, message=message):
                    world.succession.spoke(epoch)
                    if self._heeded(epoch):
                        if isinstance(message, m.Commit) and message.seq == len(world.trace.log) + 1:
                            self._entered(message, machine)
                        world.note(f.Said(to, message, world.now))
                    world.send(COORDINATOR, to, message, epoch=epoch)
                case k.Manifest(version=version, lost=files):
                    world.line(COORDINATOR, "", effect)
                    if self._heeded(epoch):
                        world.note(f.Saved(version, tuple(world.workers.retained[file] for file in files)))
                    world.after(MANIFEST_MS, partial(self.step, k.Recorded(version), epoch))
                case k.Keep(placed):
                    world.succession.keep(epoch, placed)
                case k.Halt(reason=reason) if machine.deposed:
                    world.figures.deposed += 1
                    world.line(COORDINATOR, "", f"ends: {reason}")
                    self._gone(epoch)
                case k.Halt(reason=reason):
                    self._halted(reason)
                case k.Log() | k.Begun():
                    world.line(COORDINATOR, "", effect)
                case other:
                    raise TypeError(f"a coordinator has no effect {other!r}")

    def _tick(self, epoch: int | None = None) -> None:
        """epoch: of the one that ticks; None: whichever leads."""
        if epoch is not None and epoch not in self.reigns:
            return
        world, office = self._world, self.office(self.reign if epoch is None else epoch)
        if world.put_off(office, partial(self._tick, epoch), first=True):
            return
        self.step(k.Tick(), epoch)
        world.at(world.now + world.scenario.job.limits.tick_ms, partial(self._tick, epoch))

    def _heeded(self, epoch: int) -> bool:
        """Whether what the coordinator of this epoch says and hears counts: no later one has learnt the log."""
        return epoch == self.reign or (self._taken_over and self.leader.recovery.accounts is None)

    def _entered(self, commit: m.Commit, machine: Coordinator) -> None:
        """An update enters the log: with replicas, each of them must hold its sum."""
        world = self._world
        if commit.contributors and world.scenario.job.replicas > 1:
            placed = [world.servers[index] for index in machine.log.servers]
            lacking = [server.index for server in placed if server.shard.replica.sum != commit.contributors]
            world.note(f.Entered(commit.seq, tuple(index for index in lacking if not world.servers[index].gone)))

    # --- the end of one, and another one's beginning --------------------------------------------

    def _gone(self, epoch: int) -> None:
        """A coordinator's process has ended."""
        world = self._world
        del self.reigns[epoch]
        world.frozen.thaws.pop(self.office(epoch), None)
        world.succession.ended(epoch)
        if epoch == self.reign and self.recoverable:
            world.trace.forget(self._known())

    def _known(self) -> int:
        """The last entry that some server has, and all before it."""
        entries: list[m.Commit] = []
        placed = [self._world.servers[index].shard for index in self.placed]
        for shard in placed:  # those that do not follow the log yet tell the next coordinator what they have heard, too
            entries += [*shard.journal.pending.values(), *(kept.commit for kept in shard.journal.kept.values())]
            entries += [shard.progress.commit] if shard.progress is not None else []
        last, known = max((shard.version for shard in placed), default=-1), valid(entries)
        return next(seq for seq in itertools.count(last) if seq + 1 not in known)

    def _settle(self, since: int) -> None:
        """A new coordinator has learnt the log: what it did not find never happened."""
        trace = self._world.trace
        if self._unsettled or since < len(trace.log):
            trace.forget(min(since, len(trace.log)))
        self._unsettled = False

    def _halted(self, reason: str) -> None:
        """The coordinator gave up: right only when a server was silent for too long, as faults may have it."""
        world = self._world
        lost = [server.index for server in world.servers.every if server.gone or world.servers.is_silent(server)]
        chains = [chain for shard, chain in enumerate(world.trace.chains) if shard in self.leader.replicas.lost]
        seen = max((life.session.version for life in world.workers), default=0)
        second = world.scenario.cuts or world.figures.losses or world.figures.drains
        twice = self._taken_over and second and seen > self.leader.log.version  # two faults at once
        early = self._taken_over and not self._known()
        lacking = not lost or any(set(chain) - set(lost) - world.trace.filling for chain in chains)
        if lacking and not early and not twice:
            raise Violation("Progress", f"the coordinator gave up: {reason}")
        world.line(COORDINATOR, "", f"gives up: {reason}")
        world.stop()
