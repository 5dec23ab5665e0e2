"""Transports: connections that carry frames, behind one contract (see base), told apart by scheme."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from shoal.config import Limits, Tls
from shoal.errors import ConfigurationError
from shoal.transport import inproc, shm, tcp
from shoal.transport.base import Accept, Connection, Listener, Receiver, Wrap, unwrapped

_TRANSPORTS: Mapping[str, ModuleType] = {module.SCHEME: module for module in (tcp, inproc, shm)}
ALTERNATIVE = ","  # between the ways to one listener, best first


async def listen(
    address: str, accept: Accept, limits: Limits, wrap: Wrap = unwrapped, tls: Tls | None = None
) -> Listener:
    """Accepts connections at "tcp://host:port", "inproc://name" or "shm://".

    accept is called with each new connection and returns its receiver; wrap replaces what the
    receiver sees of the connection (see faulty). With tls every byte over tcp:// is encrypted, and nobody
    gets in without a certificate; what stays on one host needs none (docs/security.md). Raises
    ConfigurationError for an address that is taken or none, or files of tls that cannot be used.
    """
    listener: Listener = await _transport(address).listen(address, accept, limits, wrap, tls)
    return listener


async def connect(
    address: str,
    receiver: Receiver,
    limits: Limits,
    deadline_ms: int,
    wrap: Wrap = unwrapped,
    tls: Tls | None = None,
) -> Connection:
    """Connects to a listener, trying again until one is there; of several addresses, by the first that can be used.

    The receiver may be called before this returns. Raises StartupError, which names the address,
    the last error and the time spent, after deadline_ms; RefusedError at once where who listens is not who
    it should be; ConfigurationError for no address, or files of tls that cannot be used.
    """
    ways = address.split(ALTERNATIVE)
    way = next((way for way in ways if not way.startswith(shm.SCHEME) or shm.reachable(way)), ways[-1])
    connection: Connection = await _transport(way).connect(way, receiver, limits, deadline_ms, wrap, tls)
    return connection


def _transport(address: str) -> ModuleType:
    scheme, separator, _ = address.partition("://")
    if not separator or scheme not in _TRANSPORTS:
        known = " or ".join(f"{name}://" for name in _TRANSPORTS)
        raise ConfigurationError(f"{address!r} is no address; it must start with {known}")
    return _TRANSPORTS[scheme]


__all__ = ["Accept", "Connection", "Listener", "Receiver", "Wrap", "connect", "listen", "unwrapped"]
