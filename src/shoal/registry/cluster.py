"""Calls to an etcd cluster: tried at one member after the other until one answers, by a deadline.

aetcd brings etcd's interface (`aetcd.rpc`, generated) and gRPC. Its own Client knows one member and no
TLS, has one timeout for all calls, and cannot watch again once a stream broke, so calls are made here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from aetcd import rpc

from shoal.errors import DeadlineError, RefusedError, RegistryError
from shoal.registry.url import EtcdAddress

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

ATTEMPT_SECONDS = 0.5  # for one member; doubles with every round through all of them
PAUSE_SECONDS = 0.05  # between two rounds
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),  # a member that starts again is used at once, not after a minute
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)
REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
)
OLD_RIGHTS = "revision of auth store is old"


class AgainError(Exception):
    """An attempt that brought no usable answer, though nothing broke."""


class NotFoundError(Exception):
    """etcd does not know the lease."""


class Member:
    """One member of the cluster and the channel to it."""

    def __init__(self, endpoint: str, credentials: Any) -> None:
        self.endpoint = endpoint
        self.channel = (
            rpc.insecure_channel(endpoint, options=OPTIONS)
            if credentials is None
            else rpc.secure_channel(endpoint, credentials, options=OPTIONS)
        )
        self.auth = rpc.AuthStub(self.channel)
        self.kv = rpc.KVStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)


class Cluster:
    """The members, of which one is asked until it fails. Belongs to the event loop that first calls."""

    def __init__(self, address: EtcdAddress) -> None:
        self.name = address.name
        self._address = address
        self._members: list[Member] = []
        self._current = 0
        self._token = ""
        self._closed = False

    async def call(self, attempt: Callable[[Member, Metadata], Awaitable[T]], deadline_ms: float, what: str) -> T:
        """The result of attempt(member, metadata to send) at the first member that answers.

        An attempt that failed may have had its effect, and is made again: what it does must bear that.
        Raises DeadlineError (what: "to ...") with the last failure, RefusedError where etcd says no, and
        NotFoundError.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_ms / 1000
        last, tries = "nothing was tried", 0
        while (left := deadline - loop.time()) > 0 and not self.closed():
            member = self.member()
            seconds = min(left, ATTEMPT_SECONDS * 2 ** min(tries // len(self._members), 10))
            tries += 1
            try:
                async with asyncio.timeout(seconds):
                    return await attempt(member, await self.metadata(member))
            except AgainError as error:
                last = f"{member.endpoint}: {error}"
            except TimeoutError:
                if seconds >= ATTEMPT_SECONDS or tries == 1:  # else it had hardly a chance: an error before tells more
                    last = f"{member.endpoint}: no answer within {seconds:g} s"
            except grpc.aio.AioRpcError as error:
                last = f"{member.endpoint}: {error.details() or error.code().name}"
                self._judge(error, what)
            except (asyncio.CancelledError, grpc.aio.UsageError):
                if not self.closed() or being_cancelled():
                    raise
                break  # what a call on a channel that was closed meanwhile raises
            self.leave(member)
            if tries % len(self._members) == 0:
                await asyncio.sleep(PAUSE_SECONDS)
        if self.closed():
            raise RegistryError(f"{self.name} was closed while it was asked {what}")
        raise DeadlineError(
            f"{self.name} was asked {what} and did not answer within {deadline_ms / 1000:g} s ({tries} tries, last: "
            f"{last}); check that most of its members run and can be reached from here"
        )

    def member(self) -> Member:
        """The member to ask now."""
        if not self._members:
            credentials = None
            if self._address.tls:
                credentials = grpc.ssl_channel_credentials(
                    self._address.ca, self._address.key, self._address.certificate
                )
            self._members = [Member(endpoint, credentials) for endpoint in self._address.endpoints]
        return self._members[self._current % len(self._members)]

    def leave(self, member: Member) -> None:
        """This member failed: ask the next one from here on, unless somebody else found that out already."""
        if self._members and self.member() is member:
            self._current += 1

    async def metadata(self, member: Member) -> Metadata:
        """What identifies this user with every call; asks for a token where there is none."""
        if not self._address.user:
            return ()
        if not self._token:
            request = rpc.AuthenticateRequest(name=self._address.user, password=self._address.password)
            self._token = (await member.auth.Authenticate(request)).token
        return (("token", self._token),)

    def closed(self) -> bool:
        return self._closed

    async def close(self) -> None:
        """Close the channels. Calls that wait end."""
        self._closed = True
        for member in self._members:
            await member.channel.close()

    def _judge(self, error: Any, what: str) -> None:
        """Raise what no other member will answer better."""
        code, details = error.code(), error.details() or ""
        if self._token and (code is grpc.StatusCode.UNAUTHENTICATED or OLD_RIGHTS in details):
            self._token = ""  # it has expired, or rights have changed since: the next attempt asks for another
        elif code in REFUSALS:
            user = f"user {self._address.user}" if self._address.user else "a client without user"
            raise RefusedError(f"{self.name} refused {user}, who asked {what}: {details}") from None
        elif code is grpc.StatusCode.NOT_FOUND:
            raise NotFoundError(details) from None


def being_cancelled() -> bool:
    """Whether somebody cancels this task, where gRPC raises CancelledError for a closed channel as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
