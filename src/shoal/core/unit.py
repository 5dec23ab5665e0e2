"""Units: what policies count as one worker, a worker alone or all the ranks of a group.

A group is a torch process group that trains as one worker. Each of its ranks is a member with leases, couriers and a
place in the log of its own, but pushes only its part of every gradient and is given only its part of the parameters.
What it promises: a clock is ready when all ranks are; an entry settles all of them or none; one rank's weight is that
of the samples of all; and when one rank is gone the others are, too, for a process group cannot lose a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.core.commit_log import usable
from shoal.core.membership import DECLARED, PARKED, READY, Member
from shoal.policy import View
from shoal.vocabulary import SUM, TOKENS, Weighted
from shoal.wire import messages as m


@dataclass(frozen=True)
class Units:
    """The units that these members, by worker number, make."""

    members: Mapping[int, Member]

    def of(self, member: Member) -> list[Member]:
        """All living members of its unit, itself among them, in the order of their parts."""
        if not member.group:
            return [member]
        found = [(self.members.get(worker), incarnation) for worker, incarnation in member.group]
        return [mate for mate, incarnation in found if mate is not None and mate.incarnation == incarnation]

    def gathered(self, member: Member) -> bool:
        """Whether it, and all that are in its group, have declared the table and have no parameters yet."""
        return self._all(member, DECLARED)

    def ready(self, member: Member) -> bool:
        """Whether the contribution of its unit is complete."""
        return self._all(member, READY)

    def torn(self, member: Member) -> str:
        """Why its unit cannot go on, as a new coordinator finds it: a rank is gone, or they are at different clocks."""
        mates = self.of(member)
        lost = [worker for worker, _ in member.group if worker not in {mate.worker for mate in mates}]
        if member.group and lost:
            return f"worker {lost[0]} of its group is gone"
        apart = len({mate.clock for mate in mates}) > 1
        return "the coordinator that fell had let some ranks of its group go on, and others not" if apart else ""

    def view(self, now: int = 0, resting: bool = False) -> View:
        """What policies may know, by number of the unit. Who has lost a rank of its group takes part no more.

        now: where it counts how long somebody has been ready. resting: who is parked stays so, and brings nothing more.
        """
        busy = [member for member in self.members.values() if member.busy and not member.bereft]
        clocks: dict[int, int] = {}
        for member in busy:
            if not (resting and member.state == PARKED):
                clocks[member.unit] = min(member.clock, clocks.get(member.unit, member.clock))
        ready = [member for member in busy if self.ready(member)]
        waited_ms = {member.unit: min(now - mate.ready_at for mate in self.of(member)) for member in ready}
        return View(clocks, frozenset(waited_ms), waited_ms)

    def members_of(self, numbers: Iterable[int]) -> list[Member]:
        """All members of the units with these numbers, in worker order."""
        found = [mate for number in numbers for mate in self.of(self.members[number])]
        return sorted(found, key=lambda member: member.worker)

    def whole(self, members: Iterable[Member]) -> list[list[Member]]:
        """The units that these members make, each once; all ranks of a group are among them."""
        return [self.of(member) for member in members if member.worker == member.unit]

    def _all(self, member: Member, state: str) -> bool:
        mates = self.of(member)
        alike = all(mate.state == state and mate.group == member.group for mate in mates)
        return alike and len(mates) == max(1, len(member.group))


def readies(unit: Sequence[Member]) -> list[m.Ready]:
    """What the members of a unit are ready with."""
    return [member.ready for member in unit if member.ready is not None]


def counts(unit: Sequence[m.Ready], reduction: str) -> float:
    """How much a unit counts beside others. "tokens": Decoupled DiLoCo, arXiv 2604.21428: tokens**2 / steps."""
    samples = sum(ready.samples for ready in unit)
    return samples**2 / max(1, *(ready.steps for ready in unit)) if reduction == TOKENS else samples


def weighed(
    units: Iterable[tuple[Sequence[m.Ready], float]], reduction: str, awaited: float = 0
) -> tuple[Weighted, ...]:
    """The contributions that are usable, each with its weight, in worker order.

    units: what the members of each are ready with, and a factor beside its share. Every block has one contributor in a
    unit, which therefore weighs what the unit does. awaited: what others count that are not among these.
    """
    found = [(unit, factor) for unit, factor in units if usable(unit)]
    total = awaited + sum(counts(unit, reduction) for unit, _ in found)
    weights: list[Weighted] = []
    for unit, factor in found:
        share = factor if reduction == SUM else factor * counts(unit, reduction) / total
        weights += [Weighted(each.contributor, share * each.multiplier, each.whole, each.version) for each in unit]
    return tuple(sorted(weights, key=lambda item: item.contributor.worker))
