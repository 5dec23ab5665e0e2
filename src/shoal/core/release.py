"""Releases: a member goes on with the version of exactly one entry of the log.

The entry has the shards push that version to the member, and a message tells it to go on. The
message is kept, and sent again whenever the member shows that it did not arrive.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from shoal.core import machine as k
from shoal.core.commit_log import CommitLog
from shoal.core.dispatch import Dispatch
from shoal.core.membership import COMPUTING, IDLE, PARKED, Member, Membership
from shoal.vocabulary import worker_name
from shoal.wire import messages as m


@dataclass
class Releases:
    """Who goes on with which entry."""

    log: CommitLog
    membership: Membership
    dispatch: Dispatch

    def append(self, entry: m.Commit, readers: list[Member], now: int) -> list[k.Effect]:
        """Append an entry that pushes its version to `readers`, and tell them to go on."""
        readers = sorted(readers, key=lambda member: member.worker)
        release = tuple((member.worker, member.incarnation) for member in readers)
        effects = self.log.append(msgspec.structs.replace(entry, release=release, parts=_parts(readers)), now)
        for member in readers:
            member.version = entry.seq
            if member.state == IDLE:
                continue  # its answer is Granted
            member.state, member.started_at = COMPUTING, now
            members = self.membership.ordered()
            lease = self.dispatch.attach(member, members)
            member.released = m.Released(
                member.worker,
                member.incarnation,
                member.settled,
                member.clock,
                entry.seq,
                not member.dropped,
                lease,
                member.pace(members),
            )
            member.dropped = False
            effects.append(k.Send(worker_name(member.worker), member.released))
        return effects

    def again(self, member: Member, clock: int, waiting: str) -> list[k.Effect]:
        """The answer to a repeated Ready of `clock`; waiting: what the job waits for, in words."""
        released = member.released
        if released is not None and released.clock == clock and member.state != PARKED:
            return [k.Send(worker_name(member.worker), released)]
        return [k.Send(worker_name(member.worker), m.Waiting(member.worker, member.incarnation, waiting))]

    def refresh(self, member: Member, refresh: m.Refresh, now: int) -> list[k.Effect]:
        """The version this member was to get is gone on some shard: cut a new one for it."""
        if refresh.version >= member.version:
            release = ((member.worker, member.incarnation),)
            entry = msgspec.structs.replace(self.log.cut(), release=release, parts=_parts([member]))
            member.version = entry.seq
            if member.released is not None:
                member.released = msgspec.structs.replace(member.released, version=entry.seq)
            if member.granted is not None:
                member.granted = msgspec.structs.replace(member.granted, version=entry.seq)
            effects = self.log.append(entry, now)
        else:
            effects = []  # it was cut already, and the word of it was lost
        answers = [answer for answer in (member.released, member.granted) if answer is not None]
        return effects + [k.Send(worker_name(member.worker), answer) for answer in answers]


def _parts(readers: list[Member]) -> tuple[tuple[int, int, int], ...]:
    """Who needs only its part: a rank of a group, for the others have the rest."""
    return tuple((member.worker, *member.part) for member in readers if member.group)
