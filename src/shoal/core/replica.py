"""A replica: one server's part in holding a shard together with others.

The primary combines what workers pushed and forwards the sum; backups hold it until it is committed. So
whatever is in the log, every replica can apply on its own. Where the workers and all replicas of the shard
share one host, the contributions are held where they lie, and each replica combines them in passing. A server
that comes later follows the log from one version on and is given its blocks between updates (filling.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.backoff import Backoff
from shoal.core.filling import Filling
from shoal.optim.registry import rule_for
from shoal.placement import cut
from shoal.vocabulary import COORDINATOR, Weighted, node_number, server_name
from shoal.wire import messages as m

Key = tuple[int, int]  # epoch and number of an update that is prepared


@dataclass
class Replica:
    """follows: it knows where the log is; whole: it has all blocks of its shard."""

    index: int
    limits: Limits
    shard: int = -1
    blocks: tuple[int, ...] = ()
    replicated: bool = False
    leads: bool = True
    follows: bool = False
    present: set[int] = field(default_factory=set)
    view: m.Placed | None = None
    asked: m.Prepare | None = None  # the last update that was to be prepared
    key: Key = (0, 0)  # of the sum that is held, or is arriving
    sum: tuple[Weighted, ...] = ()  # whose sum is held; (): none is, or it is applied already
    in_place: bool = False  # it is in no memory: the contributions are held where they lie
    near: set[int] = field(default_factory=set)  # other servers that can share memory with this one
    over: Key = (0, 0)  # of the last sum that was applied
    arrived: set[int] = field(default_factory=set)  # blocks of the sum that is arriving
    fills: list[m.Fill] = field(default_factory=list)  # came, and are not taken in yet
    filling: Filling = field(init=False)
    telling: Backoff = field(init=False)  # that it has become whole

    def __post_init__(self) -> None:
        self.filling = Filling(self.limits, lambda block: 0)
        self.telling = Backoff(self.limits.resend_ms)

    def begin(self, create: m.Create, blocks: tuple[int, ...]) -> None:
        """This server is to hold a shard."""
        spec, every = create.spec, cut(create.spec)
        arrays = 1 + max(len(rule_for(spec.rule, settings).states) for settings in spec.groups)
        self.shard, self.blocks, self.replicated = create.shard, blocks, create.replicated
        self.follows, self.present = create.fresh, set(blocks) if create.fresh else set()
        self.leads = create.fresh and self.index == create.shard  # as a job begins
        self.filling = Filling(self.limits, lambda block: every[block].elements * 4 * arrays)

    @property
    def whole(self) -> bool:
        return self.follows and len(self.present) == len(self.blocks)

    @property
    def prepared(self) -> bool:
        """Whether the memory of sums holds one that is not applied yet, or is to be filled with one."""
        return self.asked is not None or bool(self.sum)

    def placed(self, placed: m.Placed, now: int) -> list[k.Effect]:
        """Who holds what from now on."""
        if self.view is not None and placed.view <= self.view.view:
            return []
        self.view = placed
        return self.take_part(now)

    def take_part(self, now: int) -> list[k.Effect]:
        """Do what the placement has this server do, once it holds a shard."""
        placed = self.view
        if placed is None or self.shard < 0:
            return []
        self.leads = self._leads(placed)
        if not self.leads:
            self.asked = None
            return []
        chain = placed.chains[self.shard]
        self.filling.expect([server for server in chain if server in placed.filling], self.blocks, now)
        addresses = dict(placed.addresses)
        return [k.Dial(tuple((server, addresses[server]) for server in chain[1:] if server in addresses))]

    def _leads(self, placed: m.Placed) -> bool:
        return 0 <= self.shard < len(placed.chains) and placed.chains[self.shard][:1] == (self.index,)

    # --- sums -----------------------------------------------------------------------------------

    def prepare(self, prepare: m.Prepare) -> list[k.Effect]:
        """The coordinator wants a sum to lie on every replica."""
        key = (prepare.epoch, prepare.number)
        older = self.asked is not None and key < (self.asked.epoch, self.asked.number)
        if not self.leads or older or key < self.key or key <= self.over:
            return []
        self.asked = prepare
        return self._forward() if key == self.key and self.sum else []

    def due(self, complete: Callable[[Weighted, int], bool]) -> m.Prepare | None:
        """The sum that is to be combined now, if all that goes into it is here."""
        asked = self.asked
        if asked is None or ((asked.epoch, asked.number) == self.key and self.sum):
            return None
        here = all(complete(item, count) for item, count in zip(asked.contributors, asked.blocks, strict=True))
        return asked if here else None

    def lie_near(self, asked: m.Prepare) -> bool:
        """Whether every replica can read these contributions, which are here, where their workers wrote them."""
        return all(item.whole for item in asked.contributors) and self.near.issuperset(self._others(asked))

    def combined(self, contributors: tuple[Weighted, ...], error: str = "", in_place: bool = False) -> list[k.Effect]:
        """The sum lies here; in_place: or all that it takes."""
        asked = self.asked
        if error:
            return [k.Halt(f"server {self.index} could not combine an update: {error}")]
        if asked is None or asked.contributors != contributors:
            return []  # another one is wanted by now
        self.key, self.sum, self.in_place = (asked.epoch, asked.number), contributors, in_place
        return self._forward()

    def _forward(self) -> list[k.Effect]:
        assert self.asked is not None
        held = k.Send(COORDINATOR, m.Held(self.index, self.asked.epoch, self.asked.number))
        return [held, *(self._forward_to(server, self.asked) for server in self._others(self.asked))]

    def _forward_to(self, server: int, asked: m.Prepare) -> k.Effect:
        return k.Forward(server, asked.epoch, asked.number, asked.contributors, self.in_place)

    def _others(self, asked: m.Prepare) -> list[int]:
        return [server for server in asked.to if server != self.index]

    def lacks(self, forward: m.Forward) -> bool:
        """Whether these blocks of a sum are news."""
        key = (forward.epoch, forward.number)
        return not self.leads and key > self.over and (key > self.key or (key == self.key and not self.sum))

    def forwarded(self, forward: m.Forward) -> list[k.Effect]:
        """Blocks of a sum lie here. Once all do, it is held."""
        key = (forward.epoch, forward.number)
        held: k.Effect = k.Send(COORDINATOR, m.Held(self.index, *key))
        if key == self.key and self.sum == forward.contributors and not self.leads:
            return [held]
        if not self.lacks(forward):
            return []
        if key > self.key:
            self.key, self.sum, self.arrived = key, (), set()
        self.in_place = forward.in_place
        if forward.in_place:
            self.sum = forward.contributors
            return [held]
        self.arrived.update(forward.blocks)
        if len(self.arrived) < forward.total:
            return []
        self.sum = forward.contributors
        return [k.Hold(forward.server, forward.number, tuple(sorted(self.arrived))), held]

    def applied(self) -> None:
        """The sum that was held has done its work."""
        self.sum, self.in_place, self.asked, self.over = (), False, None, self.key

    def regained(self, peer: str, near: bool) -> list[k.Effect]:
        """A server is there, or back: if a backup, what it may have missed of the sum that is held, or of its shard."""
        server = node_number(peer)
        if peer != server_name(server):
            return []
        (self.near.add if near else self.near.discard)(server)
        self.filling.again(server)
        asked = self.asked
        if asked is None or not self.sum or not self.leads or (asked.epoch, asked.number) != self.key:
            return []
        if self.in_place and not self.lie_near(asked):
            self.sum = ()  # it is to be combined, and sent
            return []
        return [self._forward_to(server, asked)] if server in asked.to else []

    # --- blocks ---------------------------------------------------------------------------------

    def give(self, version: int, updated: int, knows: m.Recovered, now: int) -> list[k.Effect]:
        """Blocks for servers that lack them. Not while a sum waits for its commit: they would come after it."""
        effects: list[k.Effect] = []
        if not self.leads or self.prepared:
            return effects
        for server, blocks, new in self.filling.due(now):
            if new:
                effects.append(k.Send(server_name(server), knows))
            effects += [k.Give(server, version, updated, blocks)] if blocks else []
        return effects

    def take_in(self, updated: int) -> list[k.Effect]:
        """Blocks that came and are of this very version; those of a later one wait, those of an older one are void."""
        effects: list[k.Effect] = []
        if not self.follows or self.leads:
            return effects
        waiting = [fill for fill in self.fills if fill.updated > updated]
        for fill in self.fills:
            if fill.updated > updated:
                continue
            effects.append(k.Load(fill, fill.updated == updated))
            if fill.updated == updated:
                was_whole = self.whole
                self.present.update(fill.blocks)
                effects.append(k.Send(server_name(fill.server), m.Filled(self.index, fill.blocks)))
                effects += [k.Send(COORDINATOR, m.Whole(self.index))] if self.whole and not was_whole else []
        self.fills = waiting
        return effects

    def tick(self, now: int) -> list[k.Effect]:
        """Say again that this server is whole, while it is not known."""
        known = self.view is None or self.index not in self.view.filling
        return [k.Send(COORDINATOR, m.Whole(self.index))] if not known and self.whole and self.telling.due(now) else []
