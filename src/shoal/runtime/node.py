"""A node: one machine of core, driven over real connections on one event loop.

It opens connections with a handshake (protocol version, job, token) before anything else is taken,
binds each peer's name to its newest connection, dials again what it should be connected to, hands
every message to the machine, and performs the effects. Subclasses know what their machine needs.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import re
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence

import msgspec

from shoal import transport
from shoal.config import PROTOCOL, Job
from shoal.core import machine as k
from shoal.errors import JobError, ProtocolError, RefusedError, ShoalError, StartupError
from shoal.runtime.follower import Follower
from shoal.runtime.peer import Peer
from shoal.runtime.strangers import Strangers
from shoal.transport import Connection, Listener, Wrap, files, unwrapped
from shoal.vocabulary import COORDINATOR
from shoal.wire import messages as m
from shoal.wire.framing import Buffer
from shoal.wire.speaker import ANYONE, speaker

REDIAL_SECONDS = 0.05
UNREAD_MAX = 3  # streams that broke, of one peer within lease_ms

logger = logging.getLogger(__name__)


def milliseconds() -> int:
    """The clock that machines see."""
    return time.monotonic_ns() // 1_000_000


class Node(ABC):
    """One node of a job. All methods run on its event loop."""

    ends_by: type[ShoalError] = JobError  # what it ends by, unless it ends well
    names = re.compile(r"(?:(?:worker|server)/[a-z0-9-]{1,40}|coordinator)?")  # of peers; a visitor has none

    def __init__(self, name: str, job: Job, wrap: Wrap = unwrapped) -> None:
        self.name = name
        self.job = job
        self.peers: dict[str, Peer] = {}
        self.halted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._wrap = wrap
        self._links: dict[Connection, Peer] = {}
        self._dialled: dict[str, str] = {}  # name -> address of the peers this node connects to
        self._tasks: set[asyncio.Task[None]] = set()  # that dial
        self._closed_bytes = [0, 0]  # received, sent on connections that are gone
        self._unread: dict[str, list[int]] = {}  # name -> when that peer could not read what this node sent
        self._visitors = 0
        self._strangers = Strangers(job, self.log)
        self._follower: Follower | None = None  # finds the coordinator that leads, where a registry says so
        self._closing = False
        self._listeners: list[Listener] = []
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    @abstractmethod
    def machine(self) -> k.Machine: ...

    @abstractmethod
    def perform(self, effect: k.Effect) -> None:
        """Perform an effect other than Send to a peer, Log and Halt."""

    def admit_payload(self, source: str, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        """Where the payload of a message lands; the default takes none."""
        kind = type(message).__name__
        raise ProtocolError(f"{source} sent {kind} with {payload_bytes} bytes, which {self.name} does not take")

    def take(self, source: str, message: m.Message, delivered: bool) -> None:
        """A message is complete. The default hands it to the machine."""
        self.event(k.Received(source, message))

    # --- driving ------------------------------------------------------------------------------

    def event(self, event: object) -> None:
        """Let the machine take an event, and perform what it answers."""
        try:
            self._act(event)
        except ProtocolError:
            raise  # the peer's fault: the transport closes its connection
        except Exception as error:  # noqa: BLE001 - whatever the defect, nobody may wait for this node
            traceback.print_exc()
            self.broke(error)

    def broke(self, error: Exception) -> None:
        """A defect: nothing may wait for this node any longer. The default ends it."""
        self.halt(f"{self.name} met a defect of Shoal: {error!r}")

    def halt(self, reason: str) -> None:
        """End this node; reason is "" when it ends well. The first reason stays."""
        if not self.halted.done():
            self.halted.set_result(reason)

    def _act(self, event: object) -> None:
        for effect in self.machine().step(event, milliseconds()):
            match effect:
                case k.Send(to, message):
                    self.send(to, message)
                case k.Log(text):
                    self.log(text)
                case k.Halt(reason):
                    self.halt(reason)
                case _:
                    self.perform(effect)

    def log(self, text: str) -> None:
        print(text, flush=True)

    def send(self, to: str, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        """Send to a peer by name. Without a connection the message is lost: machines send again."""
        peer = self.peers.get(to)
        if peer is None:
            return
        if isinstance(message, m.Heartbeat):
            received, sent = self.bytes_moved()
            message = msgspec.structs.replace(message, received=received, sent=sent)
        peer.send(message, payload, files)

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes received and sent since the node started."""
        links = list(self._links)
        return (
            self._closed_bytes[0] + sum(link.received_bytes for link in links),
            self._closed_bytes[1] + sum(link.sent_bytes for link in links),
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.job.limits.tick_ms / 1000)
            self._strangers.tick(milliseconds())
            if self._follower is not None:
                self._follower.tick()
            self.event(k.Tick())

    # --- connections --------------------------------------------------------------------------

    async def listen(self, address: str) -> str:
        """Accept peers at `address`; returns the real one (with the port that was picked)."""
        workers, servers = self.job.workers, self.job.servers
        wished = workers * (1 + self.job.limits.streams_max) + servers + self._strangers.room
        files.allow(workers + servers, wished)
        strict = self.job.limits.before_handshake()
        self._listeners.append(await transport.listen(address, self._accept, strict, tls=self.job.tls))
        return self._listeners[-1].address

    async def dial(self, name: str, address: str, deadline_ms: int | None = None) -> None:
        """Connect to the node `name`, and from now on connect again whenever the connection is lost.

        Raises StartupError when nobody answers by the deadline (default: limits.connect_ms), and
        RefusedError when the peer says no.
        """
        deadline = self.job.limits.connect_ms if deadline_ms is None else deadline_ms
        self._dialled[name] = address
        peer = await self._reach(name, address, deadline)
        if self._dialled.get(name) != address:
            peer.connection.close()
            return  # it was let go meanwhile
        self._bind(peer, name)
        if name != COORDINATOR and peer.connection.round_trip_us > self.job.limits.long_link_us:
            wanted = min(self.job.limits.streams_max, -(-peer.connection.round_trip_us // self.job.limits.stream_us))
            self._start(self._widen(peer, address, wanted))

    async def dial_coordinator(self, address: str) -> None:
        """Connect to the coordinator: there or, where the job has a registry, wherever that says, now and later.

        Raises as `dial` does.
        """
        if self.job.registry:
            self._follower = Follower(self.job, address, self.redirect)
            address = await self._follower.find()
        await self.dial(COORDINATOR, address)

    def redirect(self, address: str) -> None:
        """Another coordinator leads, and is there."""
        self._dialled[COORDINATOR] = address
        peer = self.peers.get(COORDINATOR)
        if peer is not None:
            peer.connection.cut("another coordinator leads")  # at once: that one may hang
        else:
            self._start(self._redial(COORDINATOR))

    async def _reach(self, name: str, address: str, deadline: int, first: Peer | None = None) -> Peer:
        """A connection to `name`, or a further stream of `first`, whose handshake is over. Raises as `dial` does."""
        try:
            strict = self.job.limits.before_handshake()
            connection = await transport.connect(address, self, strict, deadline, tls=self.job.tls)
        except (StartupError, RefusedError) as error:
            raise type(error)(f"{self.name} cannot reach {name}: {error}") from None
        peer = self._links.setdefault(connection, Peer(connection))
        peer.accepted = asyncio.get_running_loop().create_future()
        peer.name, peer.first = name, first
        peer.link = first.link if first is not None else random.SystemRandom().getrandbits(53)
        stream = len(first.streams) + 1 if first is not None else 0
        connection.send(m.Hello(PROTOCOL, self.job.name, self.job.token, self.name, peer.link, stream))
        try:
            await asyncio.wait_for(peer.accepted, deadline / 1000)
        except TimeoutError:
            connection.close()
            raise StartupError(
                f"{name} at {address} took the connection of {self.name} but did not answer within "
                f"{deadline / 1000:g} s: is it a Shoal {name.partition('/')[0]}?"
            ) from None
        peer.accepted = None
        return peer

    async def _widen(self, peer: Peer, address: str, wanted: int) -> None:
        """Open further streams to a peer that is far away; with fewer, or none, everything still works."""
        while self.peers.get(peer.name) is peer and len(peer.streams) < wanted:
            try:
                await self._reach(peer.name, address, self.job.limits.connect_ms, peer)
            except ShoalError as error:
                self.log(f"{self.name} has {len(peer.streams)} further streams to {peer.name}, no more: {error}")
                return

    def _join(self, first: Peer, further: Peer) -> None:
        """A connection whose handshake is over becomes a further stream of its peer."""
        if self.peers.get(first.name) is not first:
            further.connection.close()
            return
        further.name = first.name
        self._links[further.connection] = first
        first.join(further.connection, self._wrap)

    def _start(self, dialling: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(dialling)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def keep(self, addresses: Mapping[str, str]) -> None:
        """Stay connected to these peers, and let go of other servers that were dialled."""
        for name in [name for name in self._dialled if name != COORDINATOR and name not in addresses]:
            del self._dialled[name]
            peer = self.peers.get(name)
            if peer is not None:
                peer.connection.close()
        for name, address in addresses.items():
            if name not in self._dialled:
                self._dialled[name] = address
                self._start(self._redial(name))

    async def _redial(self, name: str) -> None:
        """Connect to `name`, again if the connection is lost; give up after limits.connect_ms, or once it is let go."""
        await asyncio.sleep(REDIAL_SECONDS)
        address = self._dialled.get(name)
        if address is None:
            return
        until = milliseconds() + self.job.limits.connect_ms
        while self._dialled.get(name) == address and not self._closing:
            try:
                await self.dial(name, address, max(1, until - milliseconds()))
            except ShoalError as error:
                if name == COORDINATOR and self._follower is not None:
                    self._follower.lost()  # and try here again: how long a coordinator may be away, the machine says
                    until = milliseconds() + self.job.limits.connect_ms
                    await asyncio.sleep(REDIAL_SECONDS)
                    continue
                # Who ends in the middle of a handshake may be followed by another one.
                if isinstance(error, RefusedError) or milliseconds() >= until:
                    if self._dialled.get(name) == address:
                        self.unreachable(name, error)
                    return
                await asyncio.sleep(REDIAL_SECONDS)
            else:
                return

    def unreachable(self, name: str, error: ShoalError) -> None:
        """A peer that was dialled is gone for good. The default ends the node."""
        self.halt(str(error))

    def _accept(self, connection: Connection) -> Node:
        peer = Peer(connection)
        self._links[connection] = peer
        self._strangers.arrived(connection, milliseconds())
        return self

    def _bind(self, peer: Peer, name: str) -> None:
        """From now on `name` is reached over this connection."""
        old = self.peers.get(name)
        peer.name = name
        peer.wrapped = self._wrap(peer.connection)
        self.peers[name] = peer
        if old is not None:
            old.connection.close()
        if name == COORDINATOR and self._follower is not None:
            self._follower.reached()
        self.event(k.Regained(name, peer.connection.shares_memory))

    def _hello(self, peer: Peer, hello: m.Hello) -> None:
        """Answer a handshake: the same protocol, job and token, or one clear refusal."""
        if hello.protocol != PROTOCOL:
            reason = (
                f"{self.name} speaks protocol {PROTOCOL}, {hello.name} {hello.protocol}: "
                f"install the same version of shoal on both"
            )
        elif foreign := self.foreign(hello):
            reason = foreign
        elif not self.names.fullmatch(hello.name) or (hello.name == COORDINATOR and COORDINATOR in self._dialled):
            reason = f"{hello.name[:60]!r} is no name that a peer of {self.name} can have"
        else:
            reason = self._admitted(peer, hello)
        if not reason:
            return
        who = hello.name[:60] or "a visitor"
        self._strangers.say(f"refused {who} from {peer.connection.address}: {reason}", milliseconds())
        peer.connection.send(m.Refused("Hello", reason))
        peer.connection.close()

    def foreign(self, hello: m.Hello) -> str:
        """Why a peer does not belong to the job of this node, in words for both; "" if it does."""
        if hello.job != self.job.name:
            return f"{self.name} belongs to job {self.job.name!r}, not to {hello.job!r}: check the address"
        if not self.has_token(hello):
            return f"the token does not match that of job {self.job.name!r}: set SHOAL_TOKEN to the job's own"
        return ""

    def has_token(self, hello: m.Hello) -> bool:
        """Whether it is the right one; it takes as long to say no as to say yes."""
        return hmac.compare_digest(hello.token.encode(), self.job.token.encode())

    def _admitted(self, peer: Peer, hello: m.Hello) -> str:
        """Take a peer in, or a further stream of one that is here; returns why not, or ""."""
        first = self.peers.get(hello.name) if hello.stream else None
        if hello.stream and (first is None or first.link != hello.link):
            return f"{hello.name} has no connection that this stream belongs to: it was lost meanwhile"
        if first is not None and len(first.streams) >= self.job.limits.streams_max:
            return f"{hello.name} has streams_max={self.job.limits.streams_max} streams already"
        self._strangers.known(peer.connection)
        peer.connection.allow(self.job.limits)
        peer.connection.send(m.Accepted(self.name))
        if first is not None:
            self._join(first, peer)
            return ""
        self._visitors += 1
        peer.link = hello.link
        self._bind(peer, hello.name or f"visitor/{self._visitors}")
        return ""

    # --- the transport's receiver ---------------------------------------------------------------

    def admit(self, connection: Connection, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        peer = self._links.get(connection)
        if peer is None or self.peers.get(peer.name) is not peer:
            raise ProtocolError(f"{connection.address} sent {payload_bytes} bytes before its handshake")
        places = self.admit_payload(peer.name, message, payload_bytes)
        if places is not None:
            peer.landing[connection] = message
        return places

    def received(self, connection: Connection, message: m.Message, delivered: bool) -> None:
        peer = self._links.setdefault(connection, Peer(connection))
        peer.landing.pop(connection, None)
        if peer.name and self.peers.get(peer.name) is peer:
            rightful = speaker(message)
            if rightful not in (ANYONE, peer.name):
                raise ProtocolError(f"{peer.name} sent {type(message).__name__}, which only {rightful} may send")
            if isinstance(message, m.Refused) and self._stream_broke(peer.name, message):
                connection.close()
                return
            if peer.name == COORDINATOR and self._follower is not None:
                self._follower.reached()
            self.take(peer.name, message, delivered)
            return
        match message:
            case m.Hello() if not peer.name:
                self._hello(peer, message)
            case m.Accepted() if peer.accepted is not None and not peer.accepted.done():
                connection.allow(self.job.limits)
                if peer.first is not None:
                    self._join(peer.first, peer)  # at once: payload may be right behind
                peer.accepted.set_result(None)
            case m.Refused(reason=reason) if peer.accepted is not None and not peer.accepted.done():
                peer.accepted.set_exception(RefusedError(f"{peer.name} refused {self.name}: {reason}"))
            case _:
                words = f"{connection.address} sent {type(message).__name__} before its handshake: closed"
                self._strangers.say(words, milliseconds())
                connection.close()

    def _stream_broke(self, name: str, refused: m.Refused) -> bool:
        """Whether these are words on bytes that a peer could not read, and another connection may do better.

        Not if it has said so UNREAD_MAX times within lease_ms: that is no accident, and the machine must hear of it.
        """
        if refused.what:
            return False
        now = milliseconds()
        unread = [at for at in self._unread.get(name, ()) if now - at < self.job.limits.lease_ms]
        self._unread[name] = [*unread, now]
        if len(unread) >= UNREAD_MAX:
            return False
        logger.warning("%s closed the connection of %s: %s", name, self.name, refused.reason)
        return True

    def lost(self, connection: Connection, reason: str) -> None:
        peer = self._links.pop(connection, None)
        self._strangers.left(connection, milliseconds())
        self._closed_bytes[0] += connection.received_bytes
        self._closed_bytes[1] += connection.sent_bytes
        if peer is None or not peer.leave(connection):
            return
        if peer.accepted is not None and not peer.accepted.done():
            why = reason or "it closed the connection"
            peer.accepted.set_exception(StartupError(f"{peer.name} broke off the handshake of {self.name}: {why}"))
        if reason and not peer.name:
            why = reason.removeprefix(f"{connection.address}: ")
            self._strangers.say(f"closed {connection.address}: {why}", milliseconds())
        if self.peers.get(peer.name) is peer:
            del self.peers[peer.name]
            if peer.name == COORDINATOR and self._follower is not None:
                self._follower.lost()
            if not peer.name.startswith("visitor/"):
                self.event(k.Lost(peer.name))
            if peer.name in self._dialled and not self._closing:
                self._start(self._redial(peer.name))

    async def close(self) -> None:
        """Close everything, once what was sent has left."""
        self._closing = True
        if self._follower is not None:
            self._follower.close()
        for task in (self._ticking, *self._tasks):
            task.cancel()
        for connection in list(self._links):
            connection.close()
        for listener in self._listeners:
            await listener.close()
