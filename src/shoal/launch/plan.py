"""What a job on this machine will be, all of it checked before its first process starts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from shoal import registry
from shoal.config import Limits, Tls
from shoal.errors import ConfigurationError
from shoal.launch.fleet import MEMBERS_VARIABLE, TOKEN_VARIABLE, members_from
from shoal.runtime import process
from shoal.storage.place import absolute, is_url
from shoal.storage.snapshot import read_manifest
from shoal.transport.tcp import host_and_port

# What tells one process of a job from another; a job inside a job inherits none of it.
_IDENTITY = (
    "SHOAL_COORDINATOR", "SHOAL_RANK", "SHOAL_SERVER_INDEX", "SHOAL_EPOCH", "SHOAL_RESUME", MEMBERS_VARIABLE,
    TOKEN_VARIABLE, "SHOAL_REGISTRY", "SHOAL_GROUP", process.ESTATE,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is to be run; all of it known before the first process starts."""

    command: tuple[str, ...]
    workers: int
    servers: int
    host: str
    port: int
    max_restarts: int
    resume: Path | str | None  # a snapshot: its path, or its URL
    job: str
    token: str
    limits: Limits
    tls: Tls | None = None
    replicas: int = 1  # of each server's part: so many processes hold it
    registry: str = ""  # its URL, if one is to say which coordinator leads
    standbys: int = 0  # coordinators beside the first
    group: int = 1  # so many workers in a row train as one, as a torch process group
    fleet: tuple[str, ...] = ()  # addresses of the members that lend places for servers; none: servers run here

    def check(self) -> None:
        """Raises ConfigurationError for what cannot work, SnapshotError for a snapshot that cannot be read."""
        for name, value in (("workers", self.workers), ("servers", self.servers), ("replicas", self.replicas)):
            if value < 1:
                raise ConfigurationError(f"a job needs at least 1 of its {name}, not {value}")
        if self.group < 1 or self.workers % self.group:
            raise ConfigurationError(
                f"--group {self.group} of {self.workers} workers: groups are of equal size, so let --workers be a "
                f"multiple of it, as in --workers {2 * max(1, self.group)} --group {max(1, self.group)}"
            )
        if not 0 <= self.port < 1 << 16:
            raise ConfigurationError(f"port {self.port} must lie in 0..65535; 0 takes any free one")
        if self.max_restarts < 0:
            raise ConfigurationError(f"max_restarts={self.max_restarts} must be 0 or more")
        if self.standbys < 0 or (self.standbys and not self.registry):
            raise ConfigurationError(f"standbys={self.standbys} must be 0 or more, and 0 without --registry URL")
        if self.registry:
            registry.open(self.registry, self.job)  # says what cannot be
        if self.resume is not None and not is_url(self.resume) and not Path(self.resume).exists():
            raise ConfigurationError(f"there is no snapshot at {self.resume}; give the path that a run printed")
        if self.resume is not None:
            read_manifest(self.resume)
        far = [address for address in self.fleet if not process.is_loopback(host_and_port(address)[0])]
        if far and process.is_loopback(self.host):
            raise ConfigurationError(
                f"servers on {far[0]} cannot reach a coordinator that listens on {self.host}: give --host (SHOAL_HOST) "
                f"the name or number by which the fleet's machines reach this one"
            )
        if far and self.registry.startswith("file:"):
            raise ConfigurationError(
                f"servers on {far[0]} cannot see {self.registry}: use etcd, or leave --registry out (docs/registry.md)"
            )
        match self.command:
            case () | ("-m",):
                raise ConfigurationError("there is nothing to run; give a script.py, or -m and a module")
            case ("-m", *_):
                pass
            case (script, *_) if not Path(script).is_file():
                raise ConfigurationError(f"there is no script at {script} (looked in {Path.cwd()})")

    @property
    def listen(self) -> str:
        """The address the coordinator is to listen at."""
        return f"tcp://{self.host}:{self.port}"

    @property
    def server_processes(self) -> int:
        """How many there are at first."""
        return self.servers * self.replicas

    def environment(self, base: Mapping[str, str], facts: Mapping[str, object]) -> dict[str, str]:
        """The environment of one process of the job; facts are what tells it from the others."""
        kept = {name: value for name, value in base.items() if name not in _IDENTITY}
        cores = len(os.sched_getaffinity(0))
        resume = {} if self.resume is None else {"SHOAL_RESUME": absolute(self.resume)}
        limits = {f"SHOAL_{item.name.upper()}": str(getattr(self.limits, item.name)) for item in fields(self.limits)}
        job = {
            "SHOAL_JOB": self.job,
            "SHOAL_TOKEN": self.token,
            "SHOAL_WORKERS": str(self.workers),
            "SHOAL_SERVERS": str(self.servers),
            "SHOAL_REPLICAS": str(self.replicas),
            "SHOAL_REGISTRY": self.registry,
            "SHOAL_SERVER_THREADS": base.get("SHOAL_SERVER_THREADS") or str(max(1, cores // self.servers)),
            "PYTHONUNBUFFERED": "1",
        }
        tls = {} if self.tls is None else self.tls.environment()
        return {**kept, **job, **tls, **limits, **resume, **{name: str(value) for name, value in facts.items()}}


def prepared(
    command: Sequence[str],
    workers: int,
    servers: int,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    max_restarts: int = 3,
    replicas: int = 1,
    registry: str = "",
    standbys: int = 0,
    group: int = 1,
    resume: Path | str | None = None,
    environment: Mapping[str, str] = os.environ,
    limits: Limits | None = None,
) -> Plan:
    """The plan of `launch` with these arguments, checked; nothing is started and nothing written."""
    plan = Plan(
        command=tuple(command),
        workers=workers,
        servers=servers,
        host=host,
        port=port,
        max_restarts=max_restarts,
        replicas=replicas,
        registry=registry,
        standbys=standbys,
        group=group,
        resume=resume,
        job=environment.get("SHOAL_JOB") or f"{title(command)}-{os.getpid()}",
        token=secrets.token_urlsafe(),
        limits=Limits.from_environment(environment) if limits is None else limits,
        tls=process.tls_from(environment),
        fleet=members_from(environment),
    )
    plan.check()
    return plan


def title(command: Sequence[str]) -> str:
    """A short name for what is run: "train" of train.py, "a.b" of -m a.b."""
    match command:
        case ("-m", module, *_):
            return module
        case (script, *_):
            return Path(script).stem
        case _:
            return "nothing"
