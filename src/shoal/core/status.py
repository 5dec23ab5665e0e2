"""What `shoal status` and the live view show of a job, read off the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.policy import in_words
from shoal.vocabulary import COORDINATOR, server_name, worker_name
from shoal.wire import messages as m

if TYPE_CHECKING:
    from shoal.core.coordinator import Coordinator
    from shoal.core.membership import Server


def status(coordinator: Coordinator, now: int) -> m.Status:
    """A consistent picture of the job at `now`."""
    version, ledger, policy = coordinator.log.version, coordinator.dispatch.ledger, coordinator.course.policy
    members = [m.MemberStatus(COORDINATOR, coordinator.phase, coordinator.course.clock, version, coordinator.pid)]
    for index, server in sorted(coordinator.membership.servers.items()):
        members.append(
            m.MemberStatus(
                server_name(index),
                _part(coordinator, server),
                coordinator.course.clock,
                server.version,
                pid=server.pid,
                received=server.received,
                sent=server.sent,
                silent_ms=now - server.heard_at,
            )
        )
    for member in coordinator.membership.ordered():
        members.append(
            m.MemberStatus(
                worker_name(member.worker),
                member.state,
                member.clock,
                member.version,
                pid=member.pid,
                incarnation=member.incarnation,
                staleness=coordinator.log.ages.of(member.version) if member.busy else 0,
                samples=member.samples,
                received=member.received,
                sent=member.sent,
                silent_ms=now - member.heard_at,
                figures=member.figures,
            )
        )
    return m.Status(
        job=coordinator.job.name,
        phase=coordinator.phase,
        waiting=_waiting(coordinator),
        policy="" if policy is None else in_words(policy.spec),
        epoch=coordinator.epoch,
        version=version,
        members=tuple(members),
        data_epoch=ledger.epoch if ledger is not None else 0,
        samples_committed=ledger.committed if ledger is not None else 0,
        samples=ledger.dataset.size if ledger is not None else 0,
        buried=tuple(sorted(coordinator.membership.buried.items())),
        ages=tuple(sorted(coordinator.log.ages.counted.items())),
        dropped=coordinator.log.ages.dropped,
    )


def _part(coordinator: Coordinator, server: Server) -> str:
    """What a server does in the job, in a word or two."""
    replicas = coordinator.replicas
    shard = replicas.shard(server.index)
    if server.broken_at is not None:
        return "lost"
    if shard < 0:
        return "spare"
    if not server.created:
        return "registered"
    if not replicas.replicated:
        return "serving"
    if server.index in replicas.draining:
        return f"leaves shard {shard}"
    if server.index in replicas.filling:
        return f"joins shard {shard}"
    return f"leads shard {shard}" if replicas.leads(server.index) >= 0 else f"backs shard {shard}"


def _waiting(coordinator: Coordinator) -> str:
    """What the job waits for, in words; "" when nothing."""
    match coordinator.phase:
        case "forming":
            return coordinator.formation.missing()
        case "recovering":
            return coordinator.recovery.awaited(coordinator.replicas.first)
        case _:
            return coordinator.course.waiting
