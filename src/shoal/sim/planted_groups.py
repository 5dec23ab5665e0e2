"""Groups that are not one, in one way each."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.core.coordinator import Coordinator
from shoal.core.membership import READY, Member
from shoal.core.unit import Units


class CountsTheFirstRank(Units):
    """Takes a group for ready when one of its ranks is."""

    def ready(self, member: Member) -> bool:
        return member.state == READY

    def members_of(self, numbers: Iterable[int]) -> list[Member]:
        return [member for member in super().members_of(numbers) if member.state == READY]


class CommitsHalfAGroup(Coordinator):
    """Commits those ranks of a group that are ready."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.course.units = CountsTheFirstRank(self.membership.members)
