"""Admission: how workers come to compute.

The first ones wait for each other; one of them pushes the initial parameters, which are the first entry of the log,
and all begin at one clock. In a job from a snapshot the servers have them already. Whoever comes later is given those
of the running job, and goes on at its clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.config import Job
from shoal.core import machine as k
from shoal.core.commit_log import CommitLog
from shoal.core.course import Course
from shoal.core.formation import Formation
from shoal.core.membership import DECLARED, Member, Membership
from shoal.core.proposal import Proposals
from shoal.core.release import Releases
from shoal.core.replicas import Replicas
from shoal.core.unit import Units
from shoal.vocabulary import Weighted, worker_name
from shoal.wire import messages as m
from shoal.wire.forming import NOTHING


@dataclass
class Admission:
    """Lets the course of the job begin, and lets members in. first_clock: 1 unless the job goes on from a snapshot."""

    job: Job
    first_clock: int
    formation: Formation
    membership: Membership
    units: Units
    replicas: Replicas
    log: CommitLog
    releases: Releases
    proposals: Proposals
    course: Course

    def declared(self, member: Member, now: int) -> list[k.Effect]:
        """It has declared the table, perhaps again."""
        return self._answer(member, now) if self.formation.complete else self.formation.create()

    def created(self, index: int, version: int, now: int) -> tuple[list[k.Effect], str]:
        """A server has created the table, with parameters of this version. Returns why the job cannot begin, or ""."""
        if not self.formation.created(index, version):
            return [], ""
        versions = {self.membership.servers[server].version for server in self.replicas.servers}
        if len(versions) > 1:
            return [], f"the servers loaded snapshots of different versions {sorted(versions)}"
        self.log.version = version
        declared = [member for member in self.membership.ordered() if member.state == DECLARED]
        return [effect for member in declared for effect in self._answer(member, now)], ""

    def ready(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        """The initial parameters are staged, before which nothing else can be."""
        if not member.seeder:
            return []
        if not self.replicas.replicated:
            return self._seed(member, ready, now)
        member.ready = ready
        weights = (Weighted(ready.contributor, 1.0),)
        return self.proposals.begin([member], weights, now) if self.proposals.free else []

    def held(self, now: int) -> list[k.Effect]:
        """Every replica holds the initial parameters."""
        seeder = self.membership.members.get(self.proposals.take().workers[0])
        return [] if seeder is None or seeder.ready is None else self._seed(seeder, seeder.ready, now)

    def _answer(self, member: Member, now: int) -> list[k.Effect]:
        """Declared, and what follows it: the seed, the start of the job, or admission to a running one."""
        name = worker_name(member.worker)
        effects = [] if self.course.begun else self._form(now)
        used = self.log.used.get(member.worker, NOTHING)
        declared: k.Effect = k.Send(name, m.Declared(member.worker, member.incarnation, member.seeder, used))
        if self.course.begun and self.units.gathered(member):
            return [declared, *effects, *self.course.admit(self.units.of(member), now)]
        again = [k.Send(name, member.released)] if member.released is not None else []
        return [declared, *effects, *again]

    def _form(self, now: int) -> list[k.Effect]:
        """Pick who seeds once all are here; a job from a snapshot starts at once."""
        declared = self.formation.declared()
        if len(declared) < self.job.workers:
            return []
        if self.log.version == 0:
            return self.formation.appoint()
        return [*self._begin(self.first_clock, declared), *self.course.admit(declared, now)]

    def _seed(self, member: Member, ready: m.Ready, now: int) -> list[k.Effect]:
        """The first entry of the log."""
        member.ready = None
        declared = self.formation.declared()
        begun = self._begin(1, declared)
        for item in declared:
            item.clock = self.course.clock
        return [*begun, *self.releases.append(self.log.seed(ready), declared, now)]

    def _begin(self, clock: int, members: list[Member]) -> list[k.Effect]:
        self.course.begin(clock)
        return [k.Log(f"{len(members)} workers begin at clock {clock}"), k.Begun()]
