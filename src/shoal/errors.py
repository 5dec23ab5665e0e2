"""Every error a user can meet. Each message names who, what, the state, and the next move."""

from __future__ import annotations


class ShoalError(Exception):
    """Base of all errors that Shoal raises on purpose."""


class ConfigurationError(ShoalError):
    """A setting or an argument that cannot work, found before anything is sent."""


class StartupError(ShoalError):
    """A part of the job was not there by its deadline; the message names it and its address."""


class ProtocolError(ShoalError):
    """Bytes or a message that the peer should not have sent; its connection is closed."""


class RefusedError(ShoalError):
    """A peer answered no: wrong token, other job, other version, a table that does not match."""


class FencedError(ShoalError):
    """This worker was declared dead, or belongs to an older epoch: it may change nothing."""


class NonFiniteGradientError(ShoalError):
    """A gradient holds NaN or infinity; the message names the parameter."""


class JobError(ShoalError):
    """The job cannot go on (a server died without a replica, all workers are gone)."""


class DeadlineError(ShoalError):
    """A wait ran past its deadline; the message says for whom, for what, and in which state."""


class SnapshotError(ShoalError):
    """A snapshot cannot be written or read; the message names the file."""


class RegistryError(ShoalError):
    """What the registry holds cannot be read, written or trusted; the message names the registry and the key."""
