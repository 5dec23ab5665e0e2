"""Limits and settings, read once at the door; inside, functions receive values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from shoal.errors import ConfigurationError
from shoal.vocabulary import JOB_DEFAULT

PROTOCOL = 4  # the version of frames and messages; peers of another version are refused


TLS_VARIABLES = ("SHOAL_TLS_CERT", "SHOAL_TLS_KEY", "SHOAL_TLS_CA")
TRANSPORTS = ("auto", "shm", "tcp")  # between worker and server; auto: shared memory where they share a host


@dataclass(frozen=True)
class Limits:
    """Everything that is bounded, with its unit. Environment: SHOAL_<NAME IN CAPITALS>."""

    message_bytes_max: int = 8 << 20  # the msgspec part of a frame
    payload_bytes_max: int = 64 << 20  # the tensor part of a frame
    hello_bytes_max: int = 16 << 10  # a message before the handshake is over; no payload may come before
    strangers_max: int = 256  # connections without a handshake at once, beside one for each that the job expects
    frame_bytes_target: int = (
        1 << 20
    )  # blocks are gathered into frames of about this size: a long link is not kept waiting
    fill_bytes_target: int = 16 << 20  # of a shard, given to a new replica between two updates
    queue_bytes_max: int = 4 << 30  # by reference, for one peer; beyond, a peer that takes nothing is cut
    stall_ms: int = 10_000  # after this
    long_link_us: int = 2_000  # a round trip above it makes a link long: payload goes over further streams
    stream_us: int = 25_000  # one for every so much of the round trip: the kernel's window fills 1 Gbit/s of that
    streams_max: int = 4  # of these, to one peer
    connect_ms: int = 30_000  # to reach a peer that must be there
    start_ms: int = 60_000  # for all servers and workers of a job to arrive
    wait_ms: int = 600_000  # a worker's wait for one step or lease
    tick_ms: int = 50  # how often machines look at the clock
    resend_ms: int = 2_000  # first resend of what was not answered; doubles up to 8 times
    copy_ms: int = 1_000  # a worker on the server's host has this long to copy parameters before they change
    heartbeat_ms: int = 500
    lease_ms: int = 10_000  # a worker silent for longer is declared dead
    grace_ms: int = 500  # a worker whose connection broke has this long to come back
    empty_ms: int = 60_000  # a running job without any worker fails after this

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """Limits with the overrides found in SHOAL_* variables (ConfigurationError if not whole numbers)."""
        overrides: dict[str, int] = {}
        for item in fields(cls):
            name = f"SHOAL_{item.name.upper()}"
            if name not in environment:
                continue
            try:
                overrides[item.name] = int(environment[name])
            except ValueError:
                raise ConfigurationError(f"{name}={environment[name]!r} is not a whole number") from None
            if overrides[item.name] <= 0:
                raise ConfigurationError(f"{name}={environment[name]!r} must be positive")
        return cls(**overrides)

    def before_handshake(self) -> Limits:
        """What holds for a peer that has not shown yet that it belongs to the job: words only, and short ones."""
        return replace(self, message_bytes_max=self.hello_bytes_max, payload_bytes_max=0)


@dataclass(frozen=True)
class Tls:
    """Mutual TLS on every TCP connection: files in PEM, by absolute paths."""

    certificate: str  # this node's own, with those between it and the authority, if any, behind it
    key: str  # of that certificate, without a passphrase
    authority: str  # whose signature every peer's certificate must bear

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Tls | None:
        """What SHOAL_TLS_CERT, SHOAL_TLS_KEY and SHOAL_TLS_CA say; None where none is set.

        Raises ConfigurationError where only some are: there is no half of it.
        """
        given = {name: environment[name] for name in TLS_VARIABLES if environment.get(name)}
        if not given:
            return None
        missing = [name for name in TLS_VARIABLES if name not in given]
        if missing:
            raise ConfigurationError(
                f"{', '.join(given)} without {', '.join(missing)}: TLS takes a certificate, its key and the authority "
                f"(--tls-cert, --tls-key, --tls-ca); give all three or none"
            )
        certificate, key, authority = (str(Path(given[name]).absolute()) for name in TLS_VARIABLES)
        return cls(certificate, key, authority)

    def environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads back."""
        return dict(zip(TLS_VARIABLES, (self.certificate, self.key, self.authority), strict=True))


@dataclass(frozen=True)
class Job:
    """What every process of a job knows about it."""

    name: str = JOB_DEFAULT
    token: str = ""
    workers: int = 1  # how many workers the job waits for before clock 1
    servers: int = 1  # shards: as many as there are primaries
    limits: Limits = field(default_factory=Limits)
    transport: str = TRANSPORTS[0]
    threads: int = 1  # of each server, for the update
    tls: Tls | None = None  # None: bytes cross the network as they are
    replicas: int = 1  # of each shard
    registry: str = ""  # its URL, where one says who leads; "": whoever the launcher started
