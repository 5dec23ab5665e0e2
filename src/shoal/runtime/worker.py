"""A worker: what the training thread calls, and the node that does it on a loop of its own.

Every call that waits has a deadline, and raises what went wrong by its name. Gradients are sent
from the memory they lie in, parameters are received into the memory they are used from; both are
the caller's, and no call that waits returns before they are at rest.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from shoal import errors
from shoal.config import Job
from shoal.core import machine as k
from shoal.core import session as s
from shoal.core.shared import lay_out_shared
from shoal.errors import ProtocolError, ShoalError
from shoal.placement import blocks_of_tensor, cut
from shoal.runtime.node import Node
from shoal.runtime.shared import Bytes, SharedMemory, same_memory
from shoal.transport import ALTERNATIVE, Wrap, unwrapped
from shoal.vocabulary import COORDINATOR, ITEM_BYTES, Dataset, Lease, TableSpec, node_number, server_name, worker_name
from shoal.wire import messages as m
from shoal.wire.framing import Buffer

T = TypeVar("T")

LEAVE_SECONDS = 5.0
SHOWN_MAX = 60  # characters of a value in an error
AUDITED_PAGES_MIN = 256  # of the parameters' memory, looked at in each step
AUDITED_SHARE = 1 / 64


class LoopThread:
    """An event loop on a daemon thread: the part of a worker that never blocks."""

    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it (it must have a deadline of its own)."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


class WorkerNode(Node):
    """Drives a Session; resolves one future per command that waits."""

    def __init__(self, job: Job, rank: int, wrap: Wrap = unwrapped) -> None:
        name = worker_name(rank) if rank >= 0 else f"worker/new-{random.SystemRandom().getrandbits(53)}"
        super().__init__(name, job, wrap)
        self.session = s.Session(job.limits)
        self.answer: Future[k.Effect] | None = None
        self.failure: ShoalError | None = None
        self.parameters: Sequence[Bytes] = ()  # by tensor: where fresh ones land
        self.initial: Sequence[Bytes] = ()  # by tensor: what the model begins with
        self.gradients: dict[int, Bytes] = {}  # tensor -> bytes, for the clock under way
        self.shared: SharedMemory | None = None  # with the servers on this host
        self._in_place: list[bool] = []  # by tensor: what is bound is the servers' own memory

    def machine(self) -> s.Session:
        return self.session

    def ask(self, command: object, answer: Future[k.Effect]) -> None:
        """Give the session a command whose answer someone waits for."""
        if self.failure is not None:
            answer.set_exception(self.failure)
            return
        self.answer = answer
        self.event(command)

    def near(self) -> tuple[int, ...]:
        """The servers that this worker shares memory with (StartupError for one that it cannot, but must)."""
        indices = range(len(self.session.servers))
        near = tuple(index for index in indices if self.peers[server_name(index)].connection.shares_memory)
        far = [f"{server_name(index)} ({self.session.servers[index]})" for index in indices if index not in near]
        if far and self.job.transport == "shm":
            raise errors.StartupError(
                f"{self.name} cannot share memory with {', '.join(far)}: not on this host, another user's, or started "
                f"with SHOAL_TRANSPORT=tcp; with SHOAL_TRANSPORT=auto such servers are reached over tcp"
            )
        return near

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
            self.gradients[tensor] = array if self.shared is None else self.shared.take_in(tensor, array)
        self.event(s.Push(tuple(range(len(cut(self.session.spec))))))
        self.event(s.Finish(samples=1, leases=(), rates=()))

    def push(self, tensor: int, gradient: Bytes) -> None:
        assert self.session.spec is not None
        self.gradients[tensor] = gradient
        self.event(s.Push(blocks_of_tensor(self.session.spec)[tensor]))

    def finish(self, tensors: Sequence[int], finish: s.Finish, answer: Future[k.Effect]) -> None:
        """Push what lies in shared memory, all at once, and end the step."""
        if tensors and self.failure is None:
            assert self.session.spec is not None
            blocks = blocks_of_tensor(self.session.spec)
            self.event(s.Push(tuple(block for tensor in tensors for block in blocks[tensor])))
        self.ask(finish, answer)

    # --- effects ------------------------------------------------------------------------------

    def send(
        self, to: str, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()
    ) -> None:
        match message:
            case m.Stage(blocks=blocks) if self.shared is None or not self.shared.attached(node_number(to)):
                payload = [self._slice(self.gradients, block) for block in blocks]
            case m.Attach() if self.shared is not None:
                files = (self.shared.arena.descriptor,)
        super().send(to, message, payload, files)

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case k.Dial(servers):
                asyncio.get_running_loop().create_task(self._dial(servers))
            case k.Seeding(seed=True) if self.answer is not None and self.session.parked == "start":
                self.seed()  # whoever was to seed is gone: the thread already waits for parameters
            case k.Failed(kind, text):
                self.fail(getattr(errors, kind)(text))
            case k.Fresh() | k.Leased() | k.Seeding() | k.Snapshotted() | k.Departed():
                if isinstance(effect, k.Fresh):
                    self.gradients.clear()
                self._resolve(effect)
            case _:
                raise TypeError(f"a worker's driver cannot perform {effect!r}")

    def fail(self, error: ShoalError) -> None:
        self.failure = error
        self._let_rest()
        if self.shared is not None:
            self.shared.close()  # the job may go on without this worker; its model must not
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)

    def unreachable(self, name: str, error: ShoalError) -> None:
        self.fail(errors.JobError(f"{name} is gone: {error}"))

    def log(self, text: str) -> None:
        """A worker's output belongs to its script: what matters reaches the thread that trains as an error."""

    def broke(self, error: Exception) -> None:
        self.fail(errors.JobError(f"{self.name} met a defect of Shoal: {error!r}"))

    def _let_rest(self) -> None:
        """The bound memory is the training thread's again: what still comes, by any stream, lands nowhere."""
        for peer in self.peers.values():
            peer.discard()

    def _resolve(self, effect: k.Effect) -> None:
        self._let_rest()
        if self.answer is not None and not self.answer.done():
            answer, self.answer = self.answer, None
            answer.set_result(effect)

    async def _dial(self, servers: Sequence[str]) -> None:
        name = worker_name(self.session.worker)
        try:
            if self.name != name:  # it asked for any rank: the coordinator must know it by the one it got
                self.name = name
                await self.dial(COORDINATOR, self._dialled[COORDINATOR])
            for index, address in enumerate(servers):
                ways = address.split(ALTERNATIVE)
                await self.dial(server_name(index), ways[-1] if self.job.transport == "tcp" else address)
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
        return [self._slice(self.parameters, block) for block in message.blocks]

    def take(self, source: str, message: m.Message, delivered: bool) -> None:
        match message:
            case m.Parameters(shard=shard) if self.shared is not None and self.shared.attached(shard):
                if self.session.admits(message):
                    message = self._copied(message, self.shared)
            case m.Parameters() if not delivered:
                return
            case m.Attached(shard=shard):
                descriptor = self.peers[source].connection.take_file()
                if descriptor is None or self.shared is None:
                    raise ProtocolError(f"{source} agreed to share memory and sent none along")
                self.shared.attach(shard, descriptor)
        self.event(k.Received(source, message))

    def _copied(self, message: m.Parameters, shared: SharedMemory) -> m.Message:
        """Take parameters out of shared memory, unless they are used where they lie; Moved if they changed."""
        assert self.session.spec is not None
        every = cut(self.session.spec)
        for block in message.blocks:
            if not self._in_place[every[block].tensor]:
                self._slice(self.parameters, block)[:] = shared.parameter_block(block)
        if self.session.still or shared.stamp(message.shard) == message.stamp:
            return message
        # Torn: a stamp that is odd, or has grown.
        return m.Moved(message.shard, message.worker, message.incarnation, message.version, message.version + 1)

    def _slice(self, arrays: Sequence[Bytes] | Mapping[int, Bytes], block: int) -> memoryview:
        """The bytes of one block in its tensor's array."""
        assert self.session.spec is not None
        item = cut(self.session.spec)[block]
        width = ITEM_BYTES[self.session.spec.tensors[item.tensor].dtype]
        return arrays[item.tensor][item.start * width : item.stop * width].data


class Worker:
    """One worker of a job, as the thread that trains sees it.

    Methods that wait raise: DeadlineError (nothing came in time; says for what), FencedError (this
    worker was declared dead), JobError (the job ended), RefusedError (a declaration that does not
    match the job's).
    """

    def __init__(
        self, job: Job, coordinator: str, rank: int = -1, wrap: Wrap = unwrapped, thread: LoopThread | None = None
    ) -> None:
        """Join the job whose coordinator listens at `coordinator`.

        Raises StartupError when nobody answers there, or not all servers are there in time.
        """
        self.workers = job.workers
        self._job = job
        self._thread = thread or LoopThread("shoal-worker")
        self._owns_thread = thread is None
        self._leases: list[Lease] = []  # taken since the last step
        self._written: list[int] = []  # tensors whose gradients lie in shared memory, since the last step
        self._all_near = False  # every server reads them there
        self._data_epochs = 0  # passes over the training set begun
        self._spec: TableSpec | None = None
        self._seeded: Future[k.Effect] | None = None
        self._closed = False
        self._node = self._thread.call(self._open(job, coordinator, rank, wrap))
        try:
            self._ask(s.Begin(rank, random.SystemRandom().getrandbits(53), os.getpid(), coordinator))
        except errors.DeadlineError as error:
            self._abandon()
            raise errors.StartupError(str(error)) from None
        except BaseException:
            self._abandon()
            raise

    @staticmethod
    async def _open(job: Job, coordinator: str, rank: int, wrap: Wrap) -> WorkerNode:
        node = WorkerNode(job, rank, wrap)
        try:
            await node.dial(COORDINATOR, coordinator)
        except BaseException:
            await node.close()
            raise
        return node

    @property
    def rank(self) -> int:
        """This worker's number in the job, from 0."""
        return self._node.session.worker

    @property
    def clock(self) -> int:
        """The clock this worker is working on."""
        return self._node.session.clock

    @property
    def version(self) -> int:
        """The version of the parameters held."""
        return self._node.session.version

    def declare(self, spec: TableSpec) -> bool:
        """Wait until the table exists on every server; True: this worker must seed it."""
        if self._spec is not None:
            raise errors.ConfigurationError(
                f"worker {self.rank} has declared its table already: a job has one optimizer; give it all "
                f"parameters at once, in groups where their settings differ"
            )
        self._spec = spec
        near = self._node.near()
        layout = lay_out_shared(spec, len(self._node.session.servers)) if near else None
        if layout is not None:
            self._node.shared = SharedMemory(layout)
            self._all_near = len(near) == len(self._node.session.servers)
        answer = self._ask(s.Declare(spec, near if layout is not None else ()))
        assert isinstance(answer, k.Seeding)
        return answer.seed

    def bind(self, parameters: Sequence[Bytes], initial: Sequence[Bytes] | None = None) -> None:
        """Say where fresh parameters land: per tensor its bytes in row-major order, writable host memory.

        initial: what is pushed by the worker that seeds the job, where it does not lie in the same memory.
        """
        assert self._spec is not None
        for tensor, array in zip(self._spec.tensors, parameters, strict=True):
            expected = tensor.elements * ITEM_BYTES[tensor.dtype]
            if array.nbytes != expected:
                raise errors.ConfigurationError(
                    f"{tensor.name} has {expected} bytes, not the {array.nbytes} that are bound to it"
                )
        self._node.bind(parameters, parameters if initial is None else initial)

    def seed(self) -> None:
        """Push the initial parameters as the job's (when declare returned True)."""
        self._seeded = Future()
        self._post(self._node.seed, self._seeded)

    def start(self) -> k.Fresh:
        """Wait for the initial parameters, the same on every worker."""
        answer = self._wait(self._seeded) if self._seeded is not None else self._ask(s.Await())
        assert isinstance(answer, k.Fresh)
        return answer

    def gradient_memory(self, tensor: int) -> Bytes | None:
        """Where a gradient is best written: servers on this host read it there. None: anywhere.

        It must not be written between push() and the end of step().
        """
        shared = self._node.shared
        return None if shared is None or self._node.failure is not None else shared.gradient(tensor)

    def parameter_memory(self, tensor: int) -> Bytes | None:
        """The servers' own memory of this tensor, where it may be used as it lies: it changes only while
        this worker waits. None: bind memory of your own."""
        shared = self._node.shared
        return shared.parameter(tensor) if shared is not None and self._node.session.still else None

    def parameters_written(self) -> bool:
        """Whether this process wrote into the servers' memory of its parameters (which only it sees). Looks at a
        part of the memory each time, round and round."""
        shared = self._node.shared
        return shared is not None and shared.region.written(AUDITED_PAGES_MIN, AUDITED_SHARE)

    def renew_parameters(self) -> None:
        """Forget what this process wrote there. Only right after fresh parameters came."""
        if self._node.shared is not None:
            self._node.shared.region.renew()

    def push(self, tensor: int, gradient: Bytes) -> None:
        """Send a gradient (its bytes, row-major), which must not change until step() returns. From any thread."""
        if self._node.shared is not None and self._node.failure is None:
            gradient = self._node.shared.take_in(tensor, gradient)
            if self._all_near:
                self._written.append(tensor)  # it is where it must be; the servers are told at the end of the step
                return
        self._post(self._node.push, tensor, gradient)

    def restart(self) -> None:
        """Forget what was pushed for this clock; push everything again."""
        self._written.clear()
        self._post(self._node.event, s.Restart())

    def step(
        self, rates: Sequence[float], multiplier: float = 1.0, void: bool = False, samples: int | None = None
    ) -> k.Fresh:
        """Make the contribution ready; returns when the policy lets this worker go on, parameters in place.

        rates: learning rate per group. multiplier: factor for the gradient. void: do not use the
        gradient. samples: its weight among the commit's (default: those leased, or 1 without leases).
        """
        leased = sum(lease.samples for lease in self._leases)
        count = samples if samples is not None else leased or 1
        leases = tuple(lease.identity for lease in self._leases)
        self._leases = []
        finish = s.Finish(count, leases, tuple(rates), multiplier, void)
        written, self._written = self._written, []
        fresh = self._wait_for(self._node.finish, written, finish)
        assert isinstance(fresh, k.Fresh)
        return fresh

    def next_data_epoch(self) -> int:
        """The number of this worker's next pass over the training set, from 0."""
        self._data_epochs += 1
        return self._data_epochs - 1

    def lease(self, dataset: Dataset, epoch: int) -> Lease | None:
        """Wait for samples of data epoch `epoch`; None: every sample of it is committed (by someone)."""
        answer = self._ask(s.Take(dataset, epoch))
        assert isinstance(answer, k.Leased)
        if answer.lease is not None:
            self._leases.append(answer.lease)
        return answer.lease

    def report(self, figures: Mapping[str, float]) -> None:
        """Show these figures in `shoal status` (ConfigurationError for what is no number)."""
        self._post(self._node.event, s.Tell({name: _number(name, value) for name, value in figures.items()}))

    def snapshot(self, path: str) -> int:
        """Write a snapshot of the model and the optimizer's state under `path`; returns its version.

        Raises SnapshotError when a server or the coordinator cannot write, ConfigurationError while this
        worker has no model in the job.
        """
        if self._spec is None:
            raise errors.ConfigurationError(
                f"worker {self.rank} cannot take the snapshot {path} before the job has its model: "
                f"make ps.optimizer(...) first"
            )
        answer = self._ask(s.Snapshot(path))
        assert isinstance(answer, k.Snapshotted)
        if answer.error:
            raise errors.SnapshotError(f"the snapshot {path} was not written: {answer.error}")
        return answer.version

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes received and sent so far."""
        return self._node.bytes_moved()

    def close(self) -> None:
        """Leave the job politely: what is leased and not committed goes to the others."""
        if self._closed:
            return
        self._closed = True
        if self._node.shared is not None:
            self._node.shared.close()  # the others go on, and with them the servers' memory
        if self._node.failure is None:
            answer: Future[k.Effect] = Future()
            self._post(self._node.ask, s.Leave(), answer)
            try:
                answer.result(LEAVE_SECONDS)
            except (ShoalError, TimeoutError):
                pass  # the job is gone already, or will notice by itself
        self._abandon()

    # --- helpers ------------------------------------------------------------------------------

    def _post(self, function: Any, *arguments: object) -> None:
        self._thread.loop.call_soon_threadsafe(function, *arguments)

    def _ask(self, command: object) -> k.Effect:
        return self._wait_for(self._node.ask, command)

    def _wait_for(self, function: Any, *arguments: object) -> k.Effect:
        """Call a function of the node that takes the future of an answer last; wait for the answer."""
        if self._closed:
            raise errors.JobError(f"worker {self.rank} has left the job; connect again to go on")
        answer: Future[k.Effect] = Future()
        self._post(function, *arguments, answer)
        return self._wait(answer)

    @staticmethod
    def _wait(answer: Future[k.Effect]) -> k.Effect:
        # The deadline is the session's: it knows what is waited for and says so.
        return answer.result()

    def _abandon(self) -> None:
        self._closed = True
        self._thread.call(self._node.close())
        if self._owns_thread:
            self._thread.stop()


def _number(name: str, value: object) -> float:
    """The value as it is shown; taken at once, so that one that cannot be shown is its caller's error."""
    try:
        return float(value)  # type: ignore[arg-type]  # whatever float() takes: numpy's numbers, tensors of one element
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        shown = repr(value)
        raise errors.ConfigurationError(
            f"ps.report({name}={shown[:SHOWN_MAX]}{'...' if len(shown) > SHOWN_MAX else ''}) takes one number for each "
            f"figure, and {name} is none ({error}); give ps.report({name}=float(...))"
        ) from None
