"""A worker: what the training thread calls. The node that does it runs on a loop of its own.

Every call that waits has a deadline, and raises what went wrong by its name. Gradients and parameters
lie in the caller's memory, or in memory shared with the servers; no call that waits returns before
they are at rest.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from shoal import errors
from shoal.config import Job
from shoal.core import machine as k
from shoal.core import session as s
from shoal.errors import ShoalError
from shoal.placement import blocks_of_tensor
from shoal.runtime.loop_thread import LoopThread
from shoal.runtime.pushes import Pushes
from shoal.runtime.shared import Bytes
from shoal.runtime.step import Step
from shoal.runtime.worker_node import WorkerNode
from shoal.transport import Wrap, unwrapped
from shoal.vocabulary import ITEM_BYTES, Dataset, Lease, TableSpec

LEAVE_SECONDS = 5.0
FAILURE_POLL_SECONDS = 0.02
SHOWN_MAX = 60  # characters of a value in an error
AUDITED_PAGES_MIN = 256  # of the parameters' memory, looked at in each step
AUDITED_SHARE = 1 / 64


class Worker:
    """One worker of a job, as the thread that trains sees it.

    Methods that wait raise: DeadlineError (nothing came in time; says for what), FencedError (this
    worker was declared dead), JobError (the job ended), RefusedError (a declaration that does not
    match the job's).
    """

    def __init__(
        self,
        job: Job,
        coordinator: str,
        rank: int = -1,
        wrap: Wrap = unwrapped,
        thread: LoopThread | None = None,
        resumed_from: str | None = None,
        estate: int | None = None,
    ) -> None:
        """Join the job whose coordinator listens at `coordinator`; resumed_from: the snapshot that it began from.

        estate: the descriptor of memory in which an earlier life of this worker may have left something.

        Raises StartupError when nobody answers there, or not all servers are there in time.
        """
        self.workers = job.workers
        self.resumed_from = resumed_from
        self._estate = estate
        self._thread = thread or LoopThread("shoal-worker")
        self._owns_thread = thread is None
        self._leases: list[Lease] = []  # taken since the last step
        self._data_epochs = 0  # passes over the training set begun
        self._spec: TableSpec | None = None
        self._seeded: Future[k.Effect] | None = None
        self._snapshot: Future[k.Snapshotted] | None = None  # that is being written
        self._closed = False
        self._node = self._thread.call(self._open(job, coordinator, rank, wrap))
        self._step = Step(self._node, self._ask)
        self._pushes = Pushes(self._node, self._post)
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
            await node.dial_coordinator(coordinator)
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

    @property
    def pace(self) -> float:
        """This worker's speed in samples per second by that of the fastest, in (0, 1]; 1 while it is not known."""
        return self._node.session.pace

    @property
    def leased(self) -> int:
        """Samples leased since the last step."""
        return sum(lease.samples for lease in self._leases)

    @property
    def incarnation(self) -> int:
        """Tells this life of the worker from others; it grows over the whole job."""
        return self._node.session.incarnation

    def failure_within(self, seconds: float) -> ShoalError | None:
        """What ended this worker's part in the job, if it has ended by then."""
        until = time.monotonic() + seconds
        while self._node.failure is None and time.monotonic() < until:
            time.sleep(FAILURE_POLL_SECONDS)
        return self._node.failure

    @property
    def takes_leases(self) -> bool:
        """Whether any samples were leased since the last step, or the lease was one without samples (in a group)."""
        return bool(self._leases)

    @property
    def count(self) -> int:
        """Samples that the contribution under way is over, unless step() is told: those leased; 1 without leases."""
        return self.leased if self.takes_leases else 1

    def declare(self, spec: TableSpec, group: tuple[tuple[int, int], ...] = ()) -> bool:
        """Wait until the table exists on every server; True: this worker must seed it.

        group: (worker, incarnation) of all the ranks that train with this one as one worker, by part. This one then
        pushes and is given its part only (placement.owned), and shares no memory with servers: they would show it all.
        """
        if self._spec is not None:
            raise errors.ConfigurationError(
                f"worker {self.rank} has declared its table already: a job has one optimizer; give it all "
                f"parameters at once, in groups where their settings differ"
            )
        self._spec = spec
        near = self._node.prepare(spec, group, self._estate)
        self._pushes.all_near = len(near) == len(self._node.session.couriers.servers)
        answer = self._ask(s.Declare(spec, near, group))
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
        self._node.inherit(self.resumed_from, answer.clock)
        return answer

    def gradient_memory(self, tensor: int) -> Bytes | None:
        """Where a gradient is best written: servers on this host read it there. None: anywhere.

        It must not be written between push() and the end of step().
        """
        self.finish_step()  # the servers may still read the last one
        return self._pushes.memory(tensor)

    def gradient_arena(self) -> Bytes | None:
        """All of that memory, every tensor's and what lies between them: (bytes,) uint8. None: there is none."""
        return self._pushes.arena()

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

    @property
    def encodes(self) -> bool:
        """Whether gradients travel otherwise than they are, so that push() tells whether they are finite."""
        return self._pushes.encoded

    def push(self, tensor: int, gradient: Bytes) -> bool:
        """Send a gradient (its bytes, row-major), which must not change until step() returns. From any thread.

        False: it was encoded, and some of it is not finite.
        """
        self.finish_step()
        assert self._spec is not None, "the table comes first"
        return self._pushes.push(self._spec, tensor, gradient)

    def restart(self) -> None:
        """Forget what was pushed for this clock; push everything again."""
        self.finish_step()
        self._pushes.restart()
        self._post(self._node.event, s.Restart())

    def rescale(self, multiplier: float) -> bool:
        """Say what this step's gradients will be multiplied by; True: push all of them again, after a restart()."""
        self.finish_step()
        return self._pushes.rescale(multiplier)

    def step(
        self, rates: Sequence[float], multiplier: float = 1.0, void: bool = False, samples: int | None = None
    ) -> k.Fresh:
        """Make the contribution ready; returns when the policy lets this worker go on, parameters in place.

        rates: learning rate per group. multiplier: factor for the gradient. void: do not use the
        gradient. samples: its weight among the commit's (default: those leased, or 1 without leases).
        """
        self._begin(rates, multiplier, void, samples)
        fresh = self.finish_step()
        assert fresh is not None, "it was begun"
        return fresh

    def begin_step(
        self,
        rates: Sequence[float],
        multiplier: float = 1.0,
        void: bool = False,
        samples: int | None = None,
        steps: int = 1,
    ) -> None:
        """The same, but return at once; await_tensors() and finish_step() wait, and so does every other call.

        steps: of this worker's own that the samples were taken in."""
        self.finish_step()
        self._node.progress.begin()
        self._begin(rates, multiplier, void, samples, steps)

    def _begin(
        self, rates: Sequence[float], multiplier: float, void: bool, samples: int | None, steps: int = 1
    ) -> None:
        self.finish_step()
        count = samples if samples is not None else self.count
        leases = tuple(lease.identity for lease in self._leases)
        self._leases = []
        written = self._pushes.seal(used=not void and bool(count or self._node.session.group))
        finish = s.Finish(count, leases, tuple(rates), multiplier, void, steps=steps)
        self._check_open()
        self._post(self._node.finish, written, finish, self._step.begin())

    @property
    def stepping(self) -> bool:
        """Whether a step was begun, and its end not seen yet."""
        return self._step.under_way

    @property
    def arrived(self) -> bool:
        """Whether finish_step() would return at once."""
        return self._step.arrived

    def await_staged(self) -> None:
        """Wait until the gradients of the step that was begun may be changed, unless they lie in shared memory."""
        if not self._pushes.all_near:
            self._step.await_staged()

    def await_tensors(self, tensors: Iterable[int]) -> None:
        """Wait until these tensors' parameters of the step that was begun are in place (raises as step() does)."""
        if self._step.under_way:
            assert self._spec is not None
            every = blocks_of_tensor(self._spec)
            self._step.await_blocks({block for tensor in tensors for block in every[tensor]})

    def finish_step(self) -> k.Fresh | None:
        """Wait for the end of the step that was begun; None: there is none."""
        return self._step.finish()

    def next_data_epoch(self) -> int:
        """The number of this worker's next pass over the training set, from 0."""
        self._data_epochs += 1
        return self._data_epochs - 1

    def lease(self, dataset: Dataset, epoch: int) -> Lease | None:
        """Wait for samples of data epoch `epoch`; None: every sample of it is committed (by someone)."""
        lease = self._step.lease_ahead(dataset, epoch)
        if lease is None:
            answer = self._ask(s.Take(dataset, epoch))
            assert isinstance(answer, k.Leased)
            lease = answer.lease
        if lease is not None:
            self._leases.append(lease)
        return lease

    def report(self, figures: Mapping[str, float]) -> None:
        """Show these figures in `shoal status` (ConfigurationError for what is no number)."""
        self._post(self._node.event, s.Tell({name: _number(name, value) for name, value in figures.items()}))

    def remembers(self, clock: int) -> bool:
        """Whether the random state of this clock is known."""
        return clock in self._node.session.recollection.states

    def remember(self, clock: int, state: Callable[[], bytes]) -> None:
        """What `clock` begins with of this process's random state, for snapshots: called if one asks for it."""
        self._node.session.recollection.remember(clock, state)

    def begin_snapshot(self, path: str, keep: int = 0) -> None:
        """Have a snapshot of the model and the optimizer's state written under `path`; training goes on meanwhile.

        keep: once it is complete, only so many of the newest beside it stay; 0: all.

        Waits for the one before, and raises as await_snapshot() does, for that one; ConfigurationError while this
        worker has no model in the job.
        """
        if self._spec is None:
            raise errors.ConfigurationError(
                f"worker {self.rank} cannot take the snapshot {path} before the job has its model: "
                f"make ps.optimizer(...) first"
            )
        self._check_open()
        self.await_snapshot()
        self.finish_step()
        self._snapshot = Future()
        self._post(self._node.take_snapshot, path, keep, self._snapshot)

    @property
    def saving(self) -> bool:
        """Whether a snapshot that was begun is still being written."""
        return self._snapshot is not None and not self._snapshot.done()

    def await_snapshot(self) -> int:
        """Wait for the snapshot that was begun; returns its version, or 0 without one.

        Raises SnapshotError when a server or the coordinator cannot write it.
        """
        if self._snapshot is None:
            return 0
        under_way, self._snapshot = self._snapshot, None
        answer = under_way.result()  # the deadline is the session's
        if answer.error:
            raise errors.SnapshotError(f"the snapshot {answer.path} was not written: {answer.error}")
        return answer.version

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes received and sent so far."""
        return self._node.bytes_moved()

    def close(self) -> None:
        """Leave the job politely: what is leased and not committed goes to the others.

        A snapshot that is being written is waited for: SnapshotError if it cannot be.
        """
        if self._closed:
            return
        try:
            self.finish_step()
        except ShoalError:
            pass  # whoever waits for the step is told; who leaves is not
        try:
            if self._node.failure is None:
                self._thread.call(self._node.retained())
                self.await_snapshot()
        finally:
            self._leave()

    def _leave(self) -> None:
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
        if not self._thread.loop.is_closed():  # a model that is used on may still compute gradients: they go nowhere
            self._thread.loop.call_soon_threadsafe(function, *arguments)

    def _ask(self, command: object) -> k.Effect:
        return self._wait_for(self._node.ask, command)

    def _wait_for(self, function: Any, *arguments: object) -> k.Effect:
        """Call a function of the node that takes the future of an answer last; wait for the answer."""
        self.finish_step()
        self._check_open()
        answer: Future[k.Effect] = Future()
        self._post(function, *arguments, answer)
        return self._wait(answer)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.JobError(f"worker {self.rank} has left the job; connect again to go on")

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
