"""Frames over TCP: who listens at "tcp://host:port", and who connects to it; with TLS or without, never either.

The settings decide, not the peer and not the address: with TLS nothing else is spoken or taken.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from urllib.parse import urlsplit

from shoal.config import Limits, Tls
from shoal.errors import ConfigurationError
from shoal.transport.base import Accept, Connection, Listener, Receiver, Wrap, unwrapped
from shoal.transport.dial import dial
from shoal.transport.tcp_connection import SCHEME, TcpConnection, address_of
from shoal.transport.tls import Channel, accepting, dialling
from shoal.transport.tls_connection import TlsConnection

BACKLOG = 1024

__all__ = ["SCHEME", "announced", "connect", "host_and_port", "listen"]


async def listen(
    address: str, accept: Accept, limits: Limits, wrap: Wrap = unwrapped, tls: Tls | None = None
) -> Listener:
    """Accepts connections at "tcp://host:port"; port 0 picks a free one.

    With tls, accept is called before the peer has shown its certificate, so that the receiver can bound how
    many are here and how long; it hears nothing of the peer but `lost` until the certificate is good.

    Raises ConfigurationError when the address is taken, not this machine's, or no address, or for files of
    tls that cannot be used.
    """
    host, port = host_and_port(address)
    context = None if tls is None else accepting(tls)
    bound = await _bind(host, port)
    loop = asyncio.get_running_loop()

    def arrived() -> TcpConnection:
        if context is None:
            return TcpConnection("", accept, limits, wrap)
        return TlsConnection("", accept, limits, wrap, Channel(context))

    server = await loop.create_server(arrived, sock=bound, backlog=BACKLOG)
    return _TcpListener(address_of(bound.getsockname()), server)


async def connect(
    address: str,
    receiver: Receiver,
    limits: Limits,
    deadline_ms: int,
    wrap: Wrap = unwrapped,
    tls: Tls | None = None,
) -> Connection:
    """Connects to "tcp://host:port", trying again until the deadline.

    Raises StartupError when nothing answers in deadline_ms, ConfigurationError for no address or files of tls
    that cannot be used, RefusedError when who answers does not speak TLS or has a certificate that is not good.
    """
    host, port = host_and_port(address)
    context = None if tls is None else dialling(tls)
    loop = asyncio.get_running_loop()

    async def attempt() -> Connection:
        if context is None:
            _, plain = await loop.create_connection(
                lambda: TcpConnection(address, lambda _: receiver, limits, wrap), host, port
            )
            return plain.face
        secured: asyncio.Future[None] = loop.create_future()
        _, connection = await loop.create_connection(
            lambda: TlsConnection(address, lambda _: receiver, limits, wrap, Channel(context, host), secured),
            host,
            port,
        )
        try:
            await secured
        except BaseException:
            connection.give_up()
            raise
        return connection.face

    return await dial(address, attempt, deadline_ms)


def host_and_port(address: str) -> tuple[str, int]:
    """Of "tcp://host:port"; ConfigurationError for anything else."""
    try:
        parts = urlsplit(address)
        if parts.hostname and parts.port is not None:
            return parts.hostname, parts.port
        reason = "host and port must both be there"
    except ValueError as error:
        reason = str(error)
    raise ConfigurationError(f"{address!r} is no address ({reason}); write it like tcp://127.0.0.1:5555")


def announced(listener: str, own: str) -> str:
    """The address by which others reach `listener`, on the machine that is known to them by `own`.

    They differ where it listens at every number of the machine (0.0.0.0, [::]), which to others means their own.
    Raises ConfigurationError where it takes nothing that is sent to `own`.
    """
    host, port = host_and_port(listener)
    number = ipaddress.ip_address(host)
    if not number.is_unspecified:
        return listener
    known, _ = host_and_port(own)
    if ipaddress.ip_address(known).version != number.version:
        raise ConfigurationError(
            f"{listener} takes IPv{number.version} only, and this machine is known to others as {known}: "
            f"listen at a number that they can dial (SHOAL_LISTEN)"
        )
    return address_of((known, port))


class _TcpListener:
    def __init__(self, address: str, server: asyncio.Server) -> None:
        self.address = address
        self._server = server

    async def close(self) -> None:
        # No wait_closed: on some loops it waits for the connections, which live on.
        self._server.close()


async def _bind(host: str, port: int) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, sockaddr = found[0]
        return socket.create_server(sockaddr[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"{host}:{port} is taken, perhaps by another Shoal job; choose another --port or let 0 pick one"
            ) from error
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
