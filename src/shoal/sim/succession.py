"""How coordinators follow each other where there is a registry: leases, standbys, and nodes that look for the next.

One coordinator leads; a standby is always there. When the leader's lease runs out, for it died, was stopped or
is cut off, or when its entry is removed, the standby leads under a greater epoch. The one before may live: it
acts on until it learns of it, or until its lease ends by its own clock. A node hears the coordinator that it is
connected to; of a former one it hears, at worst, what came before that connection was closed.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from shoal.core import machine as k
from shoal.core.following import Following
from shoal.sim import facts as f
from shoal.sim.scenario import Ousting, Outage
from shoal.vocabulary import COORDINATOR, node_number
from shoal.wire import messages as m

if TYPE_CHECKING:
    from shoal.sim.world import World

LEASE_MS = 200
MARGIN = 0.1  # of the lease, by which its holder stops early
RENEWALS = 5  # in one lease
ANSWER_MS = (1, 8)  # one way to the registry
LOOK_MS = 10  # between two tries of the standby
WATCH_MS = (1, 40)  # until a node that asks is told
FOUND_MS = (1, 60)  # until it is connected to the coordinator that it was told of
NOTICE_MS = (0, 30)  # until a node hears that a connection broke
STRAY_CHANCE = 0.5  # of a message of a former coordinator to be read by a server that follows another one


class Succession:
    """The registry, and what coordinators and nodes do about it. Does nothing in a world without one."""

    def __init__(self, world: World, rng: Random) -> None:
        self._world = world
        self._rng = rng
        self.registry = world.machines.registry(LEASE_MS, Random(rng.random()))
        self.on = world.scenario.registered
        self.follows: dict[str, int] = {}  # node -> epoch of the coordinator that it is connected to
        self.guides: dict[str, Following] = {}  # by node
        self._untils: dict[int, int] = {}  # epoch -> what its coordinator was told last
        self._outage: Outage | None = None  # that lasts
        self._asking: set[str] = set()  # nodes whose question is on its way

    # --- who leads ------------------------------------------------------------------------------

    def begin(self) -> int:
        """The job's first coordinator leads; returns its epoch."""
        if not self.on:
            return 1
        epoch = self._granted()
        self._world.at(LOOK_MS, self._stand_by)
        return epoch

    def inaugurate(self, epoch: int) -> None:
        """A coordinator has begun to lead: it keeps its lease, and knows how long that lasts."""
        if self.on:
            self._told(epoch, self._world.now)
            self._world.after((LEASE_MS // RENEWALS,) * 2, partial(self._renew, epoch))

    def _granted(self) -> int:
        epoch = self.registry.grant(self._world.now)
        assert epoch is not None, "nobody leads"
        self._world.note(f.Led(epoch))
        return epoch

    def _stand_by(self) -> None:
        """A standby tries to lead, over and over."""
        world = self._world
        if self.registry.leader(world.now) is None and not (self._outage and not self._outage.alone):
            world.coordinators.rise(self._granted())
        world.at(world.now + LOOK_MS, self._stand_by)

    def _renew(self, epoch: int) -> None:
        world = self._world
        if world.coordinators.is_idle(epoch, partial(self._renew, epoch)):
            return
        if self._outage is None:
            world.after(ANSWER_MS, partial(self._renewed, epoch, world.now))
        world.after((LEASE_MS // RENEWALS,) * 2, partial(self._renew, epoch))

    def _renewed(self, epoch: int, asked_at: int) -> None:
        """A renewal reaches the registry, and its answer the coordinator."""
        if self.registry.renew(epoch, self._world.now):
            self._world.after(ANSWER_MS, partial(self._told, epoch, asked_at))
        else:
            reason = f"epoch {self.registry.epoch} was given out after {epoch}"
            self._world.after(ANSWER_MS, partial(self._world.coordinators.step, k.Deposed(reason), epoch))

    def _told(self, epoch: int, asked_at: int) -> None:
        world = self._world
        if world.coordinators.is_idle(epoch, partial(self._told, epoch, asked_at)):
            return
        until = asked_at + round(LEASE_MS * (1 - MARGIN))
        world.coordinators.step(k.Leads(until), epoch)
        if epoch in world.coordinators.reigns:
            self._untils[epoch] = max(until, self._untils.get(epoch, 0))

    def spoke(self, epoch: int) -> None:
        """A coordinator is about to send something."""
        if self.on:
            self._world.note(f.Spoke(epoch, self._world.now, self._untils.get(epoch, self._world.now + 1)))

    def keep(self, epoch: int, placed: m.Placed) -> None:
        """A coordinator writes who holds what, again until it is written, or another leads."""
        if self.on:
            self._world.after(ANSWER_MS, partial(self._write, epoch, placed))

    def _write(self, epoch: int, placed: m.Placed) -> None:
        world = self._world
        if self._outage is not None:
            world.after((LOOK_MS, LOOK_MS), partial(self._write, epoch, placed))
        elif self.registry.takes(epoch, world.now) and (epoch, placed.view) > world.trace.kept:
            world.note(f.Kept(epoch, placed.view))

    # --- what goes wrong ------------------------------------------------------------------------

    def outage(self, outage: Outage) -> None:
        """The registry cannot be reached."""
        world = self._world
        if not world.begun or self._outage is not None:
            return
        world.figures.outages += 1
        self._outage = outage
        world.line("registry", "", f"answers {'the coordinator' if outage.alone else 'nobody'} for {outage.for_ms} ms")
        world.at(world.now + outage.for_ms, self._back)

    def _back(self) -> None:
        self._outage = None

    def oust(self, _: Ousting) -> None:
        """Somebody removes the leader's entry."""
        world = self._world
        if world.begun and self._outage is None and not world.coordinators.headless and world.coordinators.recoverable:
            world.figures.oustings += 1
            world.line("registry", "", "loses the leader's entry")
            self.registry.oust(world.now)

    # --- whom a node follows --------------------------------------------------------------------

    def joined(self, node: str) -> None:
        """A node has started, and is connected to whoever leads, if somebody does."""
        if not self.on:
            return
        self.guides[node] = self._world.machines.following(self._world.scenario.job.limits)
        self.follows.pop(node, None)
        if self._world.coordinators.headless:
            self.guides[node].lost()
            self._seek(node)
        else:
            self.follows[node] = self.guides[node].epoch = self._world.coordinators.reign
            self.guides[node].reached(self._world.now)

    def tick(self, node: str) -> None:
        if self.on:
            self.guides[node].tick(self._world.now)
            self._seek(node)

    def heard(self, node: str) -> None:
        if self.on:
            self.guides[node].heard(self._world.now)

    def noticed(self, node: str, event: k.Lost | k.Regained) -> None:
        """The node's connection to the coordinator broke, or is back."""
        if self.on and event.peer == COORDINATOR and node in self.guides:
            if isinstance(event, k.Lost):
                self.guides[node].lost()
                self._seek(node)
            else:
                self.guides[node].reached(self._world.now)

    def _seek(self, node: str) -> None:
        if self.guides[node].seeks and node not in self._asking:
            self._asking.add(node)
            self._world.after(WATCH_MS, partial(self._answer, node))

    def _answer(self, node: str) -> None:
        """The registry tells a node that asked who leads, if it can be reached, and somebody does."""
        world, guide = self._world, self.guides[node]
        self._asking.discard(node)
        if world.frozen.until(node, world.now) is not None or not self._lives(node):
            return  # it asks again at its next tick
        leader = None if self._outage and not self._outage.alone else self.registry.leader(world.now)
        if leader is not None and guide.told(leader, f"simulated:{leader}"):
            self._leave(node)
            world.after(FOUND_MS, partial(self._connect, node, leader))
        else:
            self._seek(node)

    def _leave(self, node: str) -> None:
        """The node closes its connection to the coordinator that it followed: both ends hear of it."""
        world, former = self._world, self.follows.pop(node, None)
        if former in world.coordinators.reigns:
            world.notice(node, k.Lost(COORDINATOR))
            world.after(NOTICE_MS, partial(world.coordinators.step, k.Lost(node), former))

    def _connect(self, node: str, epoch: int) -> None:
        world = self._world
        if not self._lives(node) or self.guides[node].epoch != epoch:
            return
        if epoch not in world.coordinators.reigns:
            self.guides[node].lost()
            self._seek(node)
            return
        self.follows[node] = epoch
        world.notice(node, k.Regained(COORDINATOR))

    def _lives(self, node: str) -> bool:
        kind, number = node.partition("/")[0], node_number(node)
        if kind == "server":
            return not self._world.servers[number].gone
        return number in self._world.workers.lives

    def led_by(self, node: str) -> int:
        """The epoch of the coordinator that hears what this node sends now."""
        return self.follows.get(node, 0) if self.on else self._world.coordinators.reign

    def passes(self, epoch: int, source: str, target: str, message: m.Message) -> bool:
        """Whether what was sent between a node and the coordinator of this epoch arrives: connections are those of
        their ends. A server that has heard of a later epoch may still be read something that carries the older one."""
        node = source if target == COORDINATOR else target
        if epoch in self._world.coordinators.reigns and (not self.on or self.follows.get(node) == epoch):
            return True
        if not self.on or source != COORDINATOR or not node.startswith("server/") or not hasattr(message, "epoch"):
            return False
        later = self._world.servers[node_number(node)].shard.epoch > epoch
        return later and self._rng.random() < STRAY_CHANCE

    def ended(self, epoch: int) -> None:
        """A coordinator is gone: who followed it hears of that."""
        world = self._world
        for node in [node for node, followed in self.follows.items() if followed == epoch]:
            del self.follows[node]
            if self._lives(node):
                world.after(NOTICE_MS, partial(world.notice, node, k.Lost(COORDINATOR)))
