"""Workers that train as one: consecutive ranks that find each other as torch.distributed expects, and end together.

A process group cannot lose a member: when one of them is killed the others are ended, and all are started again.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.launch.child import Child

LOOPBACK = "127.0.0.1"


@dataclass
class Groups:
    """The groups of a launch. size: workers in each; 1: every worker is alone."""

    size: int
    ports: dict[int, int] = field(default_factory=dict)  # by group: where its ranks meet
    children: dict[int, Child] = field(default_factory=dict)  # by rank of the job: the last that was started
    ending: dict[int, set[Child]] = field(default_factory=dict)  # by group: those to end before all start again

    def of(self, rank: int) -> int:
        """The number of the group that this rank of the job is in."""
        return rank // self.size

    def ranks(self, group: int) -> range:
        return range(group * self.size, (group + 1) * self.size)

    def facts(self, rank: int) -> Mapping[str, object]:
        """What this rank's process is told of its group: nothing if it is alone."""
        if self.size == 1:
            return {}
        group, part = self.of(rank), rank % self.size
        if part == 0:
            self.ports[group] = _free_port()  # another life of the group meets elsewhere: the first may linger there
        return {
            "SHOAL_GROUP": group,
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": self.ports[group],
            "RANK": part,
            "WORLD_SIZE": self.size,
            "LOCAL_RANK": part,
            "LOCAL_WORLD_SIZE": self.size,
        }

    def buried(self, group: int, buried: Mapping[int, int]) -> bool:
        """Whether the coordinator has declared one of its processes dead. buried: by rank of the job."""
        ranks = [rank for rank in self.ranks(group) if rank in self.children]
        return self.size > 1 and any(buried.get(rank) == self.children[rank].pid for rank in ranks)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
