"""What happens to a simulated cluster beyond its messages: crashes, stops, broken connections, old coordinators."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from shoal.core import machine as k
from shoal.core.coordinator import RUNNING
from shoal.sim.frozen import FOR_GOOD, PATIENCE_MS
from shoal.sim.scenario import Change, Crash, Cut, Drain, Fall, Freeze, Loss
from shoal.sim.symbols import FORGED
from shoal.vocabulary import COORDINATOR, Weighted, node_number, server_name
from shoal.wire import messages as m

if TYPE_CHECKING:
    from shoal.sim.world import World

NOTICE_MS = (0, 30)  # until a node hears that a connection broke or is back
FOUND_MS = (1, 120)  # until a node has found the new coordinator
LATE_MS = (20, 1500)  # until what a killed worker sent last arrives once more
FORGERY_MS = (40, 400)  # between two messages of a coordinator of an older epoch


class Mishaps:
    """Brings about what the scenario says goes wrong."""

    def __init__(self, world: World, rng: Random) -> None:
        self._world = world
        self._rng = rng

    def prepare(self) -> None:
        """Put everything that will happen on the world's calendar."""
        scenario = self._world.scenario
        for crash in scenario.crashes:
            self._world.at(crash.at_ms, partial(self._crash, crash))
        for cut in scenario.cuts:
            if cut.breaks:
                self._world.at(cut.start_ms, partial(self._break, cut))
        for freeze in scenario.freezes:
            self._world.at(freeze.at_ms, partial(self._freeze, freeze))
        for fall in scenario.falls:
            self._world.at(fall.at_ms, partial(self._fall, fall))
        for drain in scenario.drains:
            self._world.at(drain.at_ms, partial(self._drain, drain))
        for change in scenario.changes:
            self._world.at(change.at_ms, partial(self._change, change))
        for loss in scenario.losses:
            self._world.at(loss.at_ms, partial(self._lose, loss))
        for outage in scenario.outages:
            self._world.at(outage.at_ms, partial(self._world.succession.outage, outage))
        for ousting in scenario.oustings:
            self._world.at(ousting.at_ms, partial(self._world.succession.oust, ousting))
        if scenario.links.ghost_chance:
            self._world.after(FORGERY_MS, self._forge)

    def _crash(self, crash: Crash) -> None:
        """SIGKILL: the process is gone; what it sent last may arrive late, or again."""
        life = self._world.workers.lives.get(crash.rank)
        if life is None:
            return
        self._world.figures.crashes += 1
        self._world.workers.end(life, "is killed")
        for target, message, payload, epoch in self._world.workers.last_words[life.nonce]:
            if self._rng.random() < 0.5:
                again = partial(self._world.pass_on, life.name, target, message, payload, epoch)
                self._world.after(LATE_MS, again)
        if not crash.silent:
            for peer in self._peers():
                self._world.after(NOTICE_MS, partial(self._world.notice, peer, k.Lost(life.name)))
        needed = not self._world.workers.lives and not self._world.workers.starting or not self._world.trace.log
        if crash.restart_after_ms is not None or needed or life.habits.group:
            wait = crash.restart_after_ms or 30
            self._world.workers.relaunch(life, (wait, wait))

    def _lose(self, loss: Loss) -> None:
        """SIGKILL of a server whose shard others have, too."""
        world = self._world
        living = list(world.servers)
        if not living or world.coordinators.headless or world.coordinators.leader.phase != RUNNING:
            return
        server = living[loss.position % len(living)]
        if not world.servers.has_heir(server):
            return
        world.figures.losses += 1
        world.line(server.name, "", "is killed")
        world.servers.kill(server)
        if not loss.silent:
            for peer in self._peers():
                world.after(NOTICE_MS, partial(world.notice, peer, k.Lost(server.name)))
        if loss.replaced_after_ms is not None:
            world.after((loss.replaced_after_ms, loss.replaced_after_ms), partial(world.servers.start, 50))

    def _drain(self, drain: Drain) -> None:
        """Somebody has a server's part given to another one."""
        world = self._world
        placed = [] if world.coordinators.headless else world.coordinators.leader.replicas.servers
        if placed and not world.frozen.leaderless:
            world.figures.drains += 1
            asked = m.Drain(server_name(placed[drain.position % len(placed)]))
            world.coordinators.step(k.Received("visitor/1", asked))
            world.servers.start(within_ms=50)

    def _change(self, change: Change) -> None:
        """Somebody sets another policy, and asks twice now and then."""
        world = self._world
        if world.coordinators.headless or world.frozen.leaderless or world.coordinators.leader.phase != RUNNING:
            return
        world.figures.changes += 1
        world.line("visitor/1", COORDINATOR, m.SetPolicy(change.policy))
        for _ in range(self._rng.choice([1, 2])):
            world.coordinators.step(k.Received("visitor/1", m.SetPolicy(change.policy)))

    def _fall(self, fall: Fall) -> None:
        """The coordinator is killed; everybody loses it, and finds the one that takes its place."""
        world = self._world
        if world.coordinators.headless or world.frozen.until(COORDINATOR, world.now) is not None or not world.begun:
            return
        if not world.coordinators.recoverable:
            return  # a second fault, before the first one is over
        world.coordinators.fall()
        if world.succession.on:
            return  # a standby leads once the lease has run out
        nodes = [*(life.name for life in world.workers), *(server.name for server in world.servers)]
        for node in nodes:
            world.after(NOTICE_MS, partial(world.notice, node, k.Lost(COORDINATOR)))
        world.at(world.now + fall.back_after_ms, self._rise)

    def _rise(self) -> None:
        world = self._world
        world.coordinators.rise(world.coordinators.reign)
        nodes = [*(life.name for life in world.workers), *(server.name for server in world.servers)]
        for node in nodes:
            world.after(FOUND_MS, partial(world.notice, node, k.Regained(COORDINATOR)))

    def _freeze(self, freeze: Freeze) -> None:
        """SIGSTOP: the node does nothing; without a coordinator nobody may wait for ever."""
        world = self._world
        known = freeze.node == COORDINATOR or node_number(freeze.node) in world.workers.lives
        if not known or world.frozen.leaderless:
            return
        world.figures.frozen += 1
        until = FOR_GOOD if freeze.for_ms is None else world.now + freeze.for_ms
        world.frozen.thaws[freeze.node] = until
        world.line(freeze.node, "", "is stopped" + (" for good" if until == FOR_GOOD else f" until {until} ms"))
        if until == FOR_GOOD and not world.succession.on:
            world.after((PATIENCE_MS, PATIENCE_MS), world.must_be_deserted)

    def _break(self, cut: Cut) -> None:
        """A connection breaks: both ends hear of it, and later that it is back."""
        self._world.figures.breaks += 1
        self._world.line(cut.one, cut.other, "the connection breaks")
        for one, other in ((cut.one, cut.other), (cut.other, cut.one)):
            self._world.after(NOTICE_MS, partial(self._world.notice, one, k.Lost(other)))
            back = max(cut.stop_ms + self._rng.randint(*NOTICE_MS), self._world.now + NOTICE_MS[1])
            near = self._world.scenario.near_servers and one.startswith("server/") and other.startswith("server/")
            self._world.at(back, partial(self._world.notice, one, k.Regained(other, near=near)))

    def _peers(self) -> list[str]:
        return [COORDINATOR, *(server.name for server in self._world.servers)]

    def _forge(self) -> None:
        """A coordinator of an older epoch speaks up: nothing may come of it."""
        if self._world.now > 2 * self._world.scenario.heals_at_ms:
            return
        living = list(self._world.servers)
        if not living:
            return
        server = self._rng.choice(living)
        shard, older = server.shard, server.shard.epoch - 1
        if shard.spec is not None and shard.version > 0:
            self._world.figures.forged += 1
            staged = tuple(Weighted(who, FORGED) for who in sorted(shard.staging.staged)[:2])
            message: m.Message = m.Commit(older, shard.version + 1, "update", staged, rates=(FORGED,))
            progress = shard.progress
            if progress is not None and progress.norms is not None:
                values = (FORGED,) * 2
                message = m.Factors(older, progress.commit.seq, progress.norms.phase, values)
            self._world.line("coordinator of an older epoch", server_name(server.index), message)
            self._world.arrive(COORDINATOR, server_name(server.index), message, {})
        self._world.after(FORGERY_MS, self._forge)
