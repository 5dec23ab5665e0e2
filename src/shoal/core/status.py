"""What `shoal status` and the live view show of a job, read off the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.vocabulary import COORDINATOR, server_name, worker_name
from shoal.wire import messages as m

if TYPE_CHECKING:
    from shoal.core.coordinator import Coordinator


def status(coordinator: Coordinator, now: int) -> m.Status:
    """A consistent picture of the job at `now`."""
    version, ledger = coordinator.log.version, coordinator.dispatch.ledger
    members = [
        m.MemberStatus(COORDINATOR, coordinator.phase, 0, 0, coordinator.clock, version, 0, 0, 0, 0, 0, {}),
    ]
    for index, server in sorted(coordinator.membership.servers.items()):
        state = "lost" if server.broken_at is not None else "serving" if server.created else "registered"
        silent_ms = now - server.heard_at
        members.append(
            m.MemberStatus(
                server_name(index), state, server.pid, 0, coordinator.clock, server.version, 0, 0,
                server.received, server.sent, silent_ms, {},
            )  # fmt: skip
        )
    for member in coordinator.membership.ordered():
        staleness = max(0, coordinator.updated - member.version) if member.busy else 0
        members.append(
            m.MemberStatus(
                worker_name(member.worker), member.state, member.pid, member.incarnation, member.clock,
                member.version, staleness, member.samples, member.received, member.sent,
                now - member.heard_at, member.figures,
            )  # fmt: skip
        )
    policy = coordinator.spec.policy if coordinator.spec is not None else None
    return m.Status(
        job=coordinator.job.name,
        phase=coordinator.phase,
        waiting=coordinator.missing() if coordinator.phase == "forming" else coordinator.waiting,
        policy="" if policy is None else _POLICY_TEXT[policy.kind].format(policy=policy),
        epoch=coordinator.epoch,
        version=version,
        members=tuple(members),
        data_epoch=ledger.epoch if ledger is not None else 0,
        samples_committed=ledger.committed if ledger is not None else 0,
        samples=ledger.dataset.size if ledger is not None else 0,
    )


_POLICY_TEXT = {
    "sync": "Sync(quorum={policy.quorum:g})",
    "bounded": "Bounded(staleness={policy.staleness})",
    "async": "Async()",
}
