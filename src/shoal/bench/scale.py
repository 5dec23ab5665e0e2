"""How an exchange grows: one size of model over several numbers of workers and of servers.

Each pair is an exchange of its own (exchange.py), one after another, checked like every other. All
processes share this machine's cores and memory: beyond some workers a step takes longer because there is
more to do, which the floor says, and because there are more processes than cores, which it does not.

A last row is about workers that do nothing: what many idle connections cost one server (connections.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from msgspec.structs import replace

from shoal.bench.connections import Idle, idle_connections
from shoal.bench.exchange import ExchangeRow, exchange
from shoal.bench.exchange import Plan as ExchangePlan
from shoal.bench.rows import Row, Seconds
from shoal.bench.sides import Show

CONNECTIONS_STEPS = 4  # that idle_connections tells of


@dataclass(frozen=True)
class Plan:
    """What to measure. workers, servers: the numbers to combine; the rest as for the exchange."""

    params: int = 10_000_000
    workers: tuple[int, ...] = (1, 2, 4, 8)
    servers: tuple[int, ...] = (1, 2, 4)
    transport: str = "shm"
    optimizer: str = "adamw"
    peers: tuple[str, ...] = ()
    steps: int = 20
    warmup: int = 3
    rounds: int = 2

    def check(self) -> None:
        """Raises ConfigurationError for what cannot be measured, before anything is."""
        for plan in self.exchanges:
            plan.check()

    @property
    def exchanges(self) -> list[ExchangePlan]:
        return [
            ExchangePlan(
                self.params, workers, servers, self.transport, self.optimizer, self.peers, self.steps, self.warmup,
                self.rounds,
            )
            for workers, servers in product(self.workers, self.servers)
        ]  # fmt: skip


class ConnectionsRow(Row, frozen=True, kw_only=True):
    """Idle connections to one server. seconds: of the busy worker's push, among them. idle: all of it."""

    idle: Idle


def connections(count: int, show: Show) -> ConnectionsRow:
    """Measure one server with and without `count` idle connections. Raises what idle_connections() raises."""
    steps = 0

    def tell(what: str) -> None:
        nonlocal steps
        show(what, steps, CONNECTIONS_STEPS)
        steps += 1

    idle = idle_connections(count, tell)
    return ConnectionsRow(
        bench="scale",
        params=0,
        workers=1 + count,
        servers=1,
        transport="tcp",
        policy="",
        optimizer="",
        peer=None,
        seconds=Seconds.of([idle.seconds_among]),
        ratio=None,
        floor_share=None,
        idle=idle,
    )


def scale(plan: Plan, show: Show) -> Iterator[ExchangeRow]:
    """A row for each pair and peer, as soon as it is measured. Raises what exchange() raises."""
    plan.check()
    exchanges = plan.exchanges
    turns = sum(each.turns for each in exchanges)
    before = 0
    for each in exchanges:
        title = f"{each.workers} workers, {each.servers} servers: "

        def tell(what: str, done: int, _: int, title: str = title, before: int = before) -> None:
            show(title + what, before + done, turns)

        for row in exchange(each, tell):
            yield replace(row, bench="scale")
        before += each.turns
