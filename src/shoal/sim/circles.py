"""Groups of simulated workers: started together, known to each other before they train, and ended together.

What torch.distributed and the launcher do for a real group, as far as the machines of core can tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from shoal.core import machine as k
from shoal.vocabulary import COORDINATOR

if TYPE_CHECKING:
    from shoal.sim.worker import Life
    from shoal.sim.world import World

KILL_MS = (0, 150)  # from the end of one rank until the launcher has ended the others


@dataclass(frozen=True)
class Met:
    """A letter: all ranks of the group are there. group: (worker, incarnation) of each, by part."""

    group: tuple[tuple[int, int], ...]


@dataclass(eq=False)
class Circle:
    """One life of a group."""

    ranks: tuple[int, ...]
    lives: dict[int, Life] = field(default_factory=dict)  # by rank: those that have come
    met: set[int] = field(default_factory=set)  # ranks that have joined the job
    torn: bool = False


class Circles:
    """All groups of a world."""

    def __init__(self, world: World, rng: Random) -> None:
        self._world, self._rng = world, rng
        self._circles: dict[tuple[int, ...], Circle] = {}

    def enter(self, life: Life) -> None:
        """A rank starts: with the others of its group, or as the first of a new life of it."""
        ranks = life.habits.group
        circle = self._circles.get(ranks)
        if circle is None or circle.torn or life.habits.rank in circle.lives:
            circle = self._circles[ranks] = Circle(ranks)
        circle.lives[life.habits.rank] = life

    def meet(self, life: Life) -> None:
        """A rank has joined; once all have, each hears who they are."""
        circle = self._circles[life.habits.group]
        if circle.lives.get(life.habits.rank) is not life:
            return  # of an earlier life of the group: it will be killed
        circle.met.add(life.habits.rank)
        if len(circle.met) < len(circle.ranks):
            return
        letter = Met(tuple(circle.lives[rank].identity for rank in circle.ranks))
        for mate in circle.lives.values():
            mate.letters.append(letter)
            self._world.at(self._world.now + 1, partial(self._world.workers.resume, mate))

    def tear(self, life: Life, span: tuple[int, int]) -> None:
        """A rank has died: the launcher ends the others, and starts all of them again."""
        world = self._world
        circle = next((item for item in [self._circles[life.habits.group]] if life in item.lives.values()), None)
        if circle is None or circle.torn:
            return
        circle.torn = True
        world.figures.torn += 1
        for rank in circle.ranks:
            world.workers.starting += 1
            when = world.now + self._rng.randint(*KILL_MS) + self._rng.randint(*span)
            world.at(when, partial(self._again, circle, rank))

    def _again(self, circle: Circle, rank: int) -> None:
        world, life = self._world, circle.lives.get(rank)
        if life is not None and world.workers.lives.get(rank) is life:
            world.workers.end(life, "is killed with its group")
            for peer in [COORDINATOR, *(server.name for server in world.servers)]:
                world.after((0, 30), partial(world.notice, peer, k.Lost(life.name)))
        world.workers.start(rank)
