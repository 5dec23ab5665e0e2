"""Formation: how a job comes together. Servers register, workers join, one table is declared and
created on every server. Whatever is missing can be said in words at any time."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.config import Job, Limits
from shoal.core import machine as k
from shoal.core.membership import DECLARED, JOINED, Member, Membership, Server
from shoal.core.replicas import Replicas
from shoal.core.unit import Units
from shoal.errors import ConfigurationError, ShoalError
from shoal.optim.registry import rule_for
from shoal.policy import Policy, from_spec
from shoal.vocabulary import ITEM_BYTES, MEAN, SUM, TOKENS, TableSpec, server_name, worker_name
from shoal.wire import messages as m


@dataclass
class Formation:
    """What the job has agreed on so far."""

    job: Job
    epoch: int
    membership: Membership
    replicas: Replicas
    spec: TableSpec | None = None
    policy: Policy | None = None
    created_at: int = 0  # when Create was last sent

    def register(self, register: m.Register, now: int) -> list[k.Effect]:
        """A server is there; once all are, waiting workers are welcome."""
        name = server_name(register.server)
        known = self.membership.servers.get(register.server)
        if register.server >= self.replicas.first and not self.replicas.replicated:
            reason = f"{name} is one too many: job {self.job.name} has {self.job.servers} servers"
            return [k.Send(name, m.Refused("Register", reason))]
        if register.server in self.replicas.gone:
            reason = f"{name} was silent for too long, and others do its part now: start another one in its place"
            return [k.Send(name, m.Refused("Register", reason))]
        if known is not None and known.pid != register.pid:
            return [k.Send(name, m.Refused("Register", f"{name} is taken by process {known.pid}"))]
        if known is None:
            facts = (register.server, register.address, register.pid, now, register.host)
            server = Server(*facts, version=register.version)
            self.membership.servers[register.server] = server
        else:
            known.heard_at, known.broken_at = now, None
        self.replicas.arrange(self.membership.servers)
        waiting = [member for member in self.membership.ordered() if member.state == JOINED]
        welcomes = [effect for member in waiting for effect in self.welcome(member, worker_name(member.worker))]
        return [k.Send(name, m.Registered(self.epoch)), *welcomes]

    def welcome(self, member: Member, to: str) -> list[k.Effect]:
        """The member's number and the servers' addresses; nothing while servers are missing."""
        if any(server not in self.membership.servers for server in self.replicas.servers):
            return []
        placed = self.replicas.placed(self.membership.servers.values())
        return [k.Send(to, m.Welcome(member.worker, member.incarnation, member.nonce, placed, self.epoch))]

    def declare(self, spec: TableSpec) -> str:
        """The first declaration is the job's table, every other must equal it; returns what is wrong."""
        if self.spec is None:
            try:
                check(spec, self.job.limits)
                if spec.radial and self.replicas.replicated:
                    raise ConfigurationError(
                        'merge="radial" needs the contributions one by one, and replicas are sent their sum: take '
                        'merge="mean", or run without replicas'
                    )
                self.policy = from_spec(spec.policy)
            except ShoalError as error:
                return str(error)
            self.spec = spec
        return "" if spec == self.spec else _difference(self.spec, spec)

    def recover(self, spec: TableSpec) -> None:
        """The table of a job that is under way: every server has it."""
        self.spec, self.policy = spec, from_spec(spec.policy)
        for index, server in self.membership.servers.items():
            server.created = self.replicas.shard(index) >= 0

    def declared(self) -> list[Member]:
        """Members that have declared the table, with all of their group, and have no parameters yet."""
        units = Units(self.membership.members)
        return [member for member in self.membership.ordered() if units.gathered(member)]

    def appoint(self) -> list[k.Effect]:
        """Have one worker push the initial parameters, unless one does so already."""
        declared = self.declared()
        if any(member.seeder for member in declared):
            return []
        seeder = declared[0]
        seeder.seeder = True
        return [k.Send(worker_name(seeder.worker), m.Declared(seeder.worker, seeder.incarnation, True))]

    @property
    def complete(self) -> bool:
        """The table exists on every server."""
        servers = self.membership.servers
        return all(server in servers and servers[server].created for server in self.replicas.servers)

    def created(self, index: int, version: int) -> bool:
        """A server has created the table; returns whether that completes it."""
        server = self.membership.servers[index]
        if server.created or self.replicas.shard(index) < 0:
            return False
        server.created, server.version = True, version
        return self.complete

    def create(self) -> list[k.Effect]:
        """Tell the servers that have not yet created the table."""
        placed = self.replicas.placed(self.membership.servers.values())
        return [
            k.Send(server_name(server), message)
            for server in self.replicas.servers
            if server in self.membership.servers and not self.membership.servers[server].created
            for message in (placed, self.creation(self.replicas.shard(server)))
        ]

    def creation(self, shard: int, fresh: bool = True) -> m.Create:
        """What a server is told that is to hold this shard. fresh: from the job's beginning."""
        assert self.spec is not None
        return m.Create(self.epoch, self.spec, shard, self.job.servers, self.replicas.replicated, fresh)

    def create_again(self, now: int) -> list[k.Effect]:
        """Repeat Create now and then, while it may have been lost."""
        if self.spec is None or now - self.created_at < self.job.limits.resend_ms:
            return []
        self.created_at = now
        return self.create()

    def missing(self) -> str:
        """What the job waits for before it begins, in words."""
        servers = [str(i) for i in self.replicas.servers if i not in self.membership.servers]
        if servers:
            return f"server {', '.join(servers)} of {self.replicas.first} did not register with the coordinator"
        members = self.membership.ordered()
        if len(members) < self.job.workers:
            present = {member.worker for member in members}
            absent = ", ".join(str(rank) for rank in range(self.job.workers) if rank not in present)
            return f"{len(members)} of {self.job.workers} workers have joined, and not worker {absent}"
        late = [member.worker for member in members if member.state != DECLARED]
        if late:
            return f"workers {late} joined but have not set up their optimizer"
        return "the initial parameters are on their way to the servers"


def check(spec: TableSpec, limits: Limits) -> None:
    """Raises ConfigurationError for a table that no server can hold."""
    if not spec.tensors:
        raise ConfigurationError("the table has no parameter: nothing in the model requires a gradient")
    for tensor in spec.tensors:
        if tensor.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise ConfigurationError(f"parameter {tensor.name!r} has dtype {tensor.dtype}; servers take {known}")
        if min(tensor.shape, default=0) < 0:
            raise ConfigurationError(f"parameter {tensor.name!r} has shape {tensor.shape}, which no tensor can have")
        if not 0 <= tensor.group < len(spec.groups):
            raise ConfigurationError(f"parameter {tensor.name!r} is in group {tensor.group} of {len(spec.groups)}")
    largest = min(spec.block_elements_max, max(tensor.elements for tensor in spec.tensors)) * max(ITEM_BYTES.values())
    if spec.block_elements_max < 1 or largest > limits.payload_bytes_max:
        raise ConfigurationError(
            f"block_elements_max={spec.block_elements_max} must be at least 1, and a block at most "
            f"payload_bytes_max={limits.payload_bytes_max} bytes"
        )
    if spec.reduction not in (MEAN, SUM, TOKENS):
        raise ConfigurationError(f"reduction={spec.reduction!r}; known: {MEAN}, {SUM}, {TOKENS}")
    for settings in spec.groups:
        rule_for(spec.rule, settings)
    if not all(0 <= tensor < len(spec.tensors) for tensor in spec.radial):
        raise ConfigurationError(f"radial={spec.radial}: there are {len(spec.tensors)} tensors")


def _difference(known: TableSpec, other: TableSpec) -> str:
    """The first thing in which two declarations of the table differ, in words."""
    way_out = "every worker must build the same model and the same optimizer"
    for mine, theirs in zip(known.tensors, other.tensors, strict=False):
        for fact in ("name", "shape", "dtype", "group"):
            if getattr(mine, fact) != getattr(theirs, fact):
                return (
                    f"parameter {mine.name!r} has {fact} {getattr(mine, fact)} in the job and {getattr(theirs, fact)} "
                    f"in this worker ({theirs.name!r}); {way_out}"
                )
    if len(known.tensors) != len(other.tensors):
        return f"the job's model has {len(known.tensors)} parameters, this worker's {len(other.tensors)}; {way_out}"
    for fact in ("rule", "groups", "policy", "clip_norm", "reduction", "block_elements_max", "radial"):
        if getattr(known, fact) != getattr(other, fact):
            return f"{fact} is {getattr(known, fact)} in the job and {getattr(other, fact)} in this worker; {way_out}"
    return way_out
