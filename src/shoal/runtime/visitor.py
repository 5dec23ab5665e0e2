"""Asks a coordinator for the state of its job, or a fleet's member for its places, as a visitor: one blocking call."""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from typing import TypeVar

from shoal.config import PROTOCOL, Limits, Tls
from shoal.errors import ConfigurationError, DeadlineError, JobError, ProtocolError, RefusedError
from shoal.transport import tls as transport_tls
from shoal.vocabulary import PolicySpec
from shoal.wire import fleet
from shoal.wire import messages as m
from shoal.wire.framing import Decoder, encode

_LIMITS = Limits(payload_bytes_max=1)  # a Status carries no payload
_READ_BYTES = 64 << 10

Reply = TypeVar("Reply", bound=m.Message)


def status(address: str, job: str, token: str, deadline_ms: int, tls: Tls | None = None) -> m.Status:
    """The Status of the job whose coordinator listens at `address` ("tcp://host:port").

    tls: None stands for what SHOAL_TLS_* say, which may be: none.

    Raises JobError when nobody listens there or the connection breaks, RefusedError for a wrong job
    name, token or certificate on either side, ProtocolError when the other side is no Shoal coordinator,
    DeadlineError when it does not answer within deadline_ms, ConfigurationError when the address is not one.
    """
    hello = m.Hello(PROTOCOL, job, token, "")
    return _asked("the coordinator", address, hello, m.StatusRequest(), m.Status, deadline_ms, tls)


def drain(address: str, job: str, token: str, what: str, deadline_ms: int, tls: Tls | None = None) -> m.Draining:
    """Have the servers of this name or host leave the job. Raises as `status` does."""
    hello = m.Hello(PROTOCOL, job, token, "")
    return _asked("the coordinator", address, hello, m.Drain(what), m.Draining, deadline_ms, tls)


def set_policy(
    address: str, job: str, token: str, policy: PolicySpec, deadline_ms: int, tls: Tls | None = None
) -> m.PolicySet:
    """Have this policy take the place of the one in force, at once or once workers have come to rest; ask again to see
    how far that is. Raises as `status` does."""
    hello = m.Hello(PROTOCOL, job, token, "")
    return _asked("the coordinator", address, hello, m.SetPolicy(policy), m.PolicySet, deadline_ms, tls)


def places(address: str, token: str, deadline_ms: int, tls: Tls | None = None) -> fleet.Places:
    """The Places of the fleet's member at `address`, for who has the fleet's token. Raises as `status` does."""
    hello = m.Hello(PROTOCOL, fleet.FLEET, token, "")
    return _asked("the fleet member", address, hello, fleet.PlacesRequest(), fleet.Places, deadline_ms, tls)


def _asked(
    who: str, address: str, hello: m.Hello, request: m.Message, expected: type[Reply], deadline_ms: int, tls: Tls | None
) -> Reply:
    """The answer to one request."""
    tls = tls or Tls.from_environment()
    host, port = _host_and_port(address)
    until = time.monotonic() + deadline_ms / 1000
    try:
        with _connected(host, port, deadline_ms, tls) as connection:
            replies = _Replies(connection, f"{who} at {address}", until)
            connection.sendall(encode(hello))
            replies.next(m.Accepted)
            connection.sendall(encode(request))
            return replies.next(expected)
    except TimeoutError:
        raise DeadlineError(f"{who} at {address} did not answer in {deadline_ms} ms") from None
    except ssl.SSLError as error:
        raise RefusedError(f"{who} at {address}: {transport_tls.reason(error)}") from None
    except OSError as error:
        kind = who.removeprefix("the ")
        raise JobError(f"no {kind} can be reached at {address} ({error.strerror or error})") from None


def _connected(host: str, port: int, deadline_ms: int, tls: Tls | None) -> socket.socket:
    context = None if tls is None else transport_tls.dialling(tls)
    connection = socket.create_connection((host, port), timeout=deadline_ms / 1000)
    if context is None:
        return connection
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


class _Replies:
    """The messages that come back on one connection."""

    def __init__(self, connection: socket.socket, who: str, until: float) -> None:
        self._connection = connection
        self._who = who
        self._until = until
        self._arrived: deque[m.Message] = deque()
        self._decoder = Decoder(_LIMITS, _discard, self._deliver)

    def _deliver(self, message: m.Message, delivered: bool) -> None:
        self._arrived.append(message)

    def next(self, expected: type[Reply]) -> Reply:
        """The next message, which must be of this type."""
        while not self._arrived:
            self._connection.settimeout(max(self._until - time.monotonic(), 0.001))
            data = self._connection.recv(_READ_BYTES)
            if not data:
                raise JobError(f"{self._who} closed the connection; it is ending")
            self._decoder.feed(data)
        message = self._arrived.popleft()
        if isinstance(message, expected):
            return message
        if isinstance(message, m.Refused):
            raise RefusedError(f"{self._who} refused: {message.reason}")
        raise ProtocolError(f"{self._who} answered {type(message).__name__} instead of {expected.__name__}")


def _discard(message: m.Message, payload_bytes: int) -> None:
    """No message for a visitor has a payload; were there one, it would be read past."""


def _host_and_port(address: str) -> tuple[str, int]:
    host, separator, port = address.removeprefix("tcp://").rpartition(":")
    if not (separator and host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigurationError(f"{address!r} is not an address; it should read like tcp://127.0.0.1:43211")
    return host.strip("[]"), int(port)
