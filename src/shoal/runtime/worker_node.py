"""A worker's node: drives its session, and moves the bytes between the caller's memory and the servers.

Gradients are sent from the memory they lie in, parameters are received into the memory they are used
from. Where servers share memory with the worker, words are enough (shared.py).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from shoal import errors
from shoal.codec.codec import packs, pulls
from shoal.config import Job
from shoal.core import machine as k
from shoal.core import session as s
from shoal.core.shared import lay_out_shared
from shoal.errors import ProtocolError, ShoalError, SnapshotError
from shoal.placement import blocks_of_tensor, cut, owned
from shoal.runtime.decoder import Decoder
from shoal.runtime.encoder import Encoder
from shoal.runtime.node import Node
from shoal.runtime.progress import Progress
from shoal.runtime.shared import Bytes, SharedMemory, same_memory
from shoal.storage.snapshot import read_lost, read_manifest, write_lost
from shoal.transport import ALTERNATIVE, Wrap, unwrapped
from shoal.vocabulary import COORDINATOR, ITEM_BYTES, TableSpec, node_number, server_name, worker_name
from shoal.wire import messages as m
from shoal.wire.framing import Buffer
from shoal.wire.gradient import WHOLE


class WorkerNode(Node):
    """Drives a Session; resolves one future per command that waits."""

    def __init__(self, job: Job, rank: int, wrap: Wrap = unwrapped) -> None:
        name = worker_name(rank) if rank >= 0 else f"worker/new-{random.SystemRandom().getrandbits(53)}"
        super().__init__(name, job, wrap)
        self.session = s.Session(job.limits)
        self.answer: Future[k.Effect] | None = None
        self.snapshot: Future[k.Snapshotted] | None = None  # that is being written
        self.failure: ShoalError | None = None
        self.parameters: Sequence[Bytes] = ()  # by tensor: where fresh ones land
        self.initial: Sequence[Bytes] = ()  # by tensor: what the model begins with
        self.gradients: dict[int, Bytes] = {}  # tensor -> bytes, for the clock under way
        self.shared: SharedMemory | None = None  # with the servers on this host
        self.encoder: Encoder | None = None  # of a table that packs gradients
        self.decoder: Decoder | None = None  # of a table with pull codecs
        self._in_place: list[bool] = []  # by tensor: what is bound is the servers' own memory
        self.progress = Progress()
        self._retaining: set[asyncio.Task[None]] = set()  # writing what codecs have lost, for snapshots

    def machine(self) -> s.Session:
        return self.session

    def ask(self, command: object, answer: Future[k.Effect]) -> None:
        """Give the session a command whose answer someone waits for."""
        if self.failure is not None:
            answer.set_exception(self.failure)
            return
        self.answer = answer
        self.event(command)

    def take_snapshot(self, path: str, keep: int, answer: Future[k.Snapshotted]) -> None:
        self.snapshot = answer
        if self.failure is not None:
            answer.set_exception(self.failure)
            return
        self.event(s.Snapshot(path, keep))

    def near(self) -> tuple[int, ...]:
        """The shards whose servers this worker shares memory with (StartupError for one that it cannot, but must)."""
        placed, servers = self.session.couriers.placed, self.session.couriers.servers
        peers = {shard: self.peers.get(server_name(server)) for shard, server in enumerate(servers)}
        near = tuple(shard for shard, peer in peers.items() if peer is not None and peer.connection.shares_memory)
        far = [
            f"{server_name(server)} ({placed.address(server) if placed else ''})"
            for shard, server in enumerate(servers)
            if shard not in near  # or it is being dialled again
        ]
        if far and self.job.transport == "shm":
            raise errors.StartupError(
                f"{self.name} cannot share memory with {', '.join(far)}: not on this host, another user's, or started "
                f"with SHOAL_TRANSPORT=tcp; with SHOAL_TRANSPORT=auto such servers are reached over tcp"
            )
        return near

    def prepare(self, spec: TableSpec, group: tuple[tuple[int, int], ...], estate: int | None) -> tuple[int, ...]:
        """Have what this table needs, before the session hears of it; returns the shards to share memory with.

        group, estate: as worker.py has them.
        """
        near, shards = self.near(), len(self.session.couriers.servers)
        layout = lay_out_shared(spec, shards) if near and not group else None
        if layout is not None:
            self.shared = SharedMemory(layout)
        if packs(spec):
            memory = None if self.shared is None else self.shared.arena.memory
            part = group.index((self.session.worker, self.session.incarnation)) if group else 0
            mine = owned(spec, part, max(1, len(group)))
            self.encoder = Encoder(spec, memory, estate, frozenset(mine))
            self.session.recollection.keeps = self.encoder.keeps
        if pulls(spec):
            self.decoder = Decoder(spec)
        return near if layout is not None else ()

    def inherit(self, source: str | None, clock: int) -> None:
        """Go on with what codecs had lost when an earlier life of this worker ended, or when the snapshot was taken.

        source: the snapshot that the job began from. clock: that this worker begins with.
        """
        encoder = self.encoder
        if encoder is None or encoder.adopt(self.session.used) or not encoder.keeps:
            return
        if source is not None and read_manifest(source).clock + 1 == clock:
            encoder.load(read_lost(source, self.session.worker))

    def bind(self, parameters: Sequence[Bytes], initial: Sequence[Bytes]) -> None:
        self.parameters, self.initial = parameters, initial
        shared = self.shared
        self._in_place = [
            shared is not None and same_memory(array, shared.parameter(tensor))
            for tensor, array in enumerate(parameters)
        ]

    def seed(self, answer: Future[k.Effect] | None = None) -> None:
        """Push the initial parameters as the job's."""
        assert self.session.spec is not None
        self.answer = answer or self.answer
        for tensor, array in enumerate(self.initial):
            near = self.shared if self.encoder is None else None  # there is no room for it where gradients are packed
            self.gradients[tensor] = array if near is None else near.take_in(tensor, array)
        self.event(s.Push(tuple(range(len(cut(self.session.spec))))))
        self.event(s.Finish(samples=1, leases=(), rates=()))

    def push(self, tensor: int, gradient: Bytes, *blocks: int) -> None:
        """Send these blocks of a tensor."""
        self.gradients[tensor] = gradient
        self.event(s.Push(blocks))

    def finish(self, tensors: Sequence[int], finish: s.Finish, answer: Future[k.Effect]) -> None:
        """Push what lies in shared memory, all at once, and end the step."""
        if tensors and self.failure is None:
            assert self.session.spec is not None
            blocks = blocks_of_tensor(self.session.spec)
            self.event(s.Push(tuple(block for tensor in tensors for block in blocks[tensor])))
        far = any(peer.connection.round_trip_us > self.job.limits.long_link_us for peer in self.peers.values())
        self.ask(replace(finish, far=far), answer)
        self.progress.of(self.session)

    # --- effects ------------------------------------------------------------------------------

    def send(self, to: str, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        match message:
            case m.Stage(contributor=who, blocks=blocks) if who.seeds and self.encoder is not None:
                payload = [self._slice(self.gradients, block) for block in blocks]
            case m.Stage(blocks=blocks) if self.shared is None or not self.shared.attached(node_number(to)):
                payload = [self._pushed(block) for block in blocks]
            case m.Attach() if self.shared is not None:
                files = (self.shared.arena.descriptor,)
        super().send(to, message, payload, files)

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case k.Dial(servers) if self.session.spec is None and self.answer is not None:
                self._start(self._dial(servers))
            case k.Dial(servers):
                self.keep(self._addresses(servers))  # others lead some shards now
            case k.Seeding(seed=True) if self.answer is not None and self.session.parked == "start":
                self.seed()  # whoever was to seed is gone: the thread already waits for parameters
            case k.Failed(kind, text):
                self.fail(getattr(errors, kind)(text))
            case k.Retain(used=used) if self.encoder is not None:
                # At once: the training thread goes on.
                task = asyncio.get_running_loop().create_task(self._retain(effect, self.encoder.pin(used)))
                self._retaining.add(task)
                task.add_done_callback(self._retaining.discard)
            case k.Snapshotted():
                if self.snapshot is not None and not self.snapshot.done():
                    self.snapshot.set_result(effect)
            case k.Fresh() | k.Leased() | k.Seeding() | k.Departed():
                if isinstance(effect, k.Fresh):
                    self.gradients.clear()
                    self.initial = ()  # the job has its first parameters: nobody will be asked for them again
                self._resolve(effect)
            case _:
                raise TypeError(f"a worker's driver cannot perform {effect!r}")

    def fail(self, error: ShoalError) -> None:
        if self.failure is not None:
            return  # the first one says why, what follows from it does not
        self.failure = error
        self._let_rest()
        if self.shared is not None:
            self.shared.close()  # the job may go on without this worker; its model must not
        for waiting in (self.answer, self.snapshot):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
        self.progress.of(self.session)

    def unreachable(self, name: str, error: ShoalError) -> None:
        if self.job.replicas > 1 and name != COORDINATOR:
            return  # another server takes its place, or the coordinator ends the job
        self.fail(errors.JobError(f"{name} is gone: {error}"))

    def log(self, text: str) -> None:
        """A worker's output belongs to its script: what matters reaches the thread that trains as an error."""

    def broke(self, error: Exception) -> None:
        self.fail(errors.JobError(f"{self.name} met a defect of Shoal: {error!r}"))

    async def retained(self) -> None:
        """Nobody trains any more: what snapshots still ask for is written and told, or is not to be had."""
        if self._retaining:
            await asyncio.wait(self._retaining, timeout=self.job.limits.wait_ms / 1000)

    async def _retain(self, effect: k.Retain, pinned: int | None) -> None:
        file = "" if pinned is None else await asyncio.to_thread(self._write_lost, effect.path, pinned)
        self.event(k.Retained(effect.seq, file))

    def _write_lost(self, path: str, pinned: int) -> str:
        """The receipt of the file; a snapshot without it is one, so nobody is told why there is none."""
        assert self.encoder is not None, "it has pinned what is written"
        try:
            return write_lost(path, self.session.worker, self.encoder.take(pinned))
        except (SnapshotError, OSError):
            return ""

    def _let_rest(self) -> None:
        """The bound memory is the training thread's again: what still comes, by any stream, lands nowhere."""
        for peer in self.peers.values():
            peer.discard()
        if self.decoder is not None:
            self.decoder.forget()

    def _resolve(self, effect: k.Effect) -> None:
        self._let_rest()
        if self.answer is not None and not self.answer.done():
            answer, self.answer = self.answer, None
            answer.set_result(effect)

    def _addresses(self, servers: Sequence[tuple[int, str]]) -> dict[str, str]:
        """How to reach these servers, by name."""
        tcp = self.job.transport == "tcp"
        return {server_name(index): address.split(ALTERNATIVE)[-1] if tcp else address for index, address in servers}

    async def _dial(self, servers: Sequence[tuple[int, str]]) -> None:
        name = worker_name(self.session.worker)
        try:
            if self.name != name:  # it asked for any rank: the coordinator must know it by the one it got
                self.name = name
                await self.dial(COORDINATOR, self._dialled[COORDINATOR])
            for server, address in self._addresses(servers).items():
                await self.dial(server, address)
        except ShoalError as error:
            self.fail(error)
            return
        self._resolve(k.Dial(tuple(servers)))

    # --- bytes --------------------------------------------------------------------------------

    def admit_payload(self, source: str, message: m.Message, payload_bytes: int) -> Sequence[memoryview] | None:
        if not isinstance(message, m.Parameters):
            return super().admit_payload(source, message, payload_bytes)
        if not self.session.admits(message):
            return None
        self.peers[source].discard(message.blocks)  # of an older version, or again, by another stream
        decoded = {} if self.decoder is None else self.decoder.places(message)
        whole = [block for block, count in message.parts if count == WHOLE]
        self.session.arrival.land(whole)
        places = {block: self._slice(self.parameters, block) for block in whole if block not in decoded}
        return [(decoded | places)[block] for block, count in message.parts if count]

    def take(self, source: str, message: m.Message, delivered: bool) -> None:
        match message:
            case m.Parameters(server=server, stamp=stamp) if self.shared is not None and stamp:
                if not self.shared.attached(server):
                    return
                if self.session.admits(message):
                    message = self._copied(message, self.shared)
            case m.Parameters() if not delivered and self.session.arrival.fits(message):
                return
            case m.Parameters() if self.decoder is not None and self.session.admits(message):
                self.decoder.take(message, self.parameters)
            case m.Attached(server=server):
                descriptor = self.peers[source].connection.take_file()
                if descriptor is None or self.shared is None:
                    if descriptor is not None:
                        os.close(descriptor)
                    raise ProtocolError(f"{source} agreed to share memory and sent none along")
                self.shared.attach(self.session.couriers.shard_of(server), server, descriptor)
        self.event(k.Received(source, message))
        self.progress.of(self.session)

    def _copied(self, message: m.Parameters, shared: SharedMemory) -> m.Message:
        """Take parameters out of shared memory, unless they are used where they lie; Moved if they changed."""
        assert self.session.spec is not None
        every = cut(self.session.spec)
        shard = self.session.couriers.shard_of(message.server)
        shared.look_at(shard)
        if not message.still and any(self._in_place):
            # The servers change them from here on while this worker computes; the training thread waits now.
            shared.part()
            self._in_place = [False] * len(self._in_place)
        for block in message.blocks:
            if not self._in_place[every[block].tensor]:
                self._slice(self.parameters, block)[:] = shared.parameter_block(block)
        if message.still or shared.stamp(shard) == message.stamp:
            return message
        # Torn: a stamp that is odd, or has grown.
        return m.Moved(message.server, message.worker, message.incarnation, message.version, message.version + 1)

    def _pushed(self, block: int) -> memoryview:
        """The bytes of one block of the gradients."""
        return self._slice(self.gradients, block) if self.encoder is None else self.encoder.block(block)

    def _slice(self, arrays: Sequence[Bytes] | Mapping[int, Bytes], block: int) -> memoryview:
        """The bytes of one block in its tensor's array."""
        assert self.session.spec is not None
        item = cut(self.session.spec)[block]
        width = ITEM_BYTES[self.session.spec.tensors[item.tensor].dtype]
        return arrays[item.tensor][item.start * width : item.stop * width].data
