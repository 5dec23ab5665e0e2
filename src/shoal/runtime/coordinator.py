"""The coordinator's process: `python -m shoal.runtime.coordinator --listen tcp://127.0.0.1:0`.

With SHOAL_REGISTRY it leads once the registry lets it, and says SHOAL READY then; as many as wanted stand by."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec

from shoal.config import Job
from shoal.core import machine as k
from shoal.core.coordinator import Coordinator
from shoal.core.saving import Samples
from shoal.errors import ConfigurationError, FencedError, ShoalError, SnapshotError
from shoal.registry import Leadership
from shoal.runtime import process
from shoal.runtime.node import Node
from shoal.runtime.office import Office
from shoal.storage import shelf, snapshot
from shoal.storage.pace import paced
from shoal.storage.place import place
from shoal.transport import Wrap, tcp, unwrapped
from shoal.vocabulary import COORDINATOR, Dataset
from shoal.wire import messages as m

EVERYWHERE = ("0.0.0.0", "::")


class State(msgspec.Struct, frozen=True):
    """What a snapshot keeps of the job beside its table: (data epoch, start, stop) of the samples in the log."""

    dataset: Dataset | None = None
    accounted: tuple[tuple[int, int, int], ...] = ()


class CoordinatorNode(Node):
    """Drives a Coordinator; writes the manifests of snapshots. Where the job has a registry, it stands by at first.

    epoch: above 1 when it takes the place of one that died: grows with each of them; with a registry, that says so.
    """

    def __init__(self, job: Job, resume: str | None = None, wrap: Wrap = unwrapped, epoch: int = 1) -> None:
        self._clock, self._samples = _begin(resume)
        super().__init__(COORDINATOR, job, wrap)
        self._thread = process.beside("manifest")
        self._office = Office(job, self.log) if job.registry else None
        self._leadership: Leadership | None = None
        self._campaign: asyncio.Task[None] | None = None
        self._coordinator = self._begun(epoch, epoch > 1)

    def _begun(self, epoch: int, recovers: bool) -> Coordinator:
        return Coordinator(self.job, epoch, self._clock, self._samples, recovers, os.getpid())

    def machine(self) -> Coordinator:
        return self._coordinator

    @property
    def stands_by(self) -> bool:
        """Another one leads, or nobody does yet."""
        return self._office is not None and self._leadership is None

    def campaign(self, address: str) -> None:
        """Stand by, and lead once the registry says so; address: where this node listens."""
        self._campaign = asyncio.get_running_loop().create_task(self._stand_by(address))

    async def _stand_by(self, address: str) -> None:
        assert self._office is not None
        try:
            led = await self._office.campaign(address)
        except ShoalError as error:
            self.halt(str(error))
            return
        if led is None:
            self.log(f"job {self.job.name} is over: nobody has to lead it")
            self.halt("")
            return
        leadership, recovers = led
        self._coordinator = self._begun(leadership.epoch, recovers)
        self._leadership = leadership
        leadership.lost.add_done_callback(self._deposed)
        self.log(f"{process.READY} {address}")

    def _deposed(self, lost: asyncio.Future[str]) -> None:
        if not lost.cancelled():
            self.event(k.Deposed(lost.result()))

    def event(self, event: object) -> None:
        if self.stands_by:
            return
        if self._leadership is not None and self._leadership.until < math.inf:
            super().event(k.Leads(int(1000 * self._leadership.until)))
        super().event(event)

    def halt(self, reason: str) -> None:
        if self._coordinator.deposed:
            self.ends_by = FencedError
        super().halt(reason)

    def foreign(self, hello: m.Hello) -> str:
        waits = f"coordinator {os.getpid()} of job {self.job.name!r} stands by: ask the registry who leads"
        return super().foreign(hello) or (waits if self.stands_by else "")

    def broke(self, error: Exception) -> None:
        super().broke(error)
        for name in self.peers:
            self.send(name, m.Stop(f"the coordinator met a defect of Shoal: {error!r}"))

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case k.Manifest():
                # It reads all that the servers wrote, so it is done beside the loop, one at a time in their order.
                done = asyncio.get_running_loop().run_in_executor(self._thread, self._record, effect)
                done.add_done_callback(lambda future: None if future.cancelled() else self.event(future.result()))
            case k.Keep(placed):
                if self._office is not None:
                    self._office.keep(placed)
            case k.Begun():
                self.log(process.BEGUN)
            case _:
                raise TypeError(f"the coordinator's driver cannot perform {effect!r}")

    def warn(self, text: str) -> None:
        """Tell whoever runs the job what did not work, and does not keep it from going on."""
        self.log(f"warning: {text}")

    def _record(self, effect: k.Manifest) -> k.Recorded:
        """Write a manifest; says what went wrong, as a worker waits for the answer whatever it is."""
        state = _state(effect.dataset, effect.accounted)
        facts = (self.job.name, effect.version, effect.clock, effect.files, effect.spec, state)
        try:
            with paced(lambda: self._coordinator.log.version):
                missing = snapshot.write_manifest(effect.path, *facts, dict(effect.random), effect.lost)
        except Exception as error:  # noqa: BLE001 - see above
            if not isinstance(error, SnapshotError | OSError | MemoryError):
                traceback.print_exc()
            return k.Recorded(effect.version, str(error) or type(error).__name__)
        if missing:
            self.warn(f"{effect.path} lacks {missing[0]}: its worker wrote it where this host does not see it")
        if effect.keep:
            try:
                shelf.prune(place(effect.path).parent, effect.keep)
            except SnapshotError as error:
                self.warn(f"{effect.path} is complete, but {error}")
        return k.Recorded(effect.version, "")

    async def close(self) -> None:
        over = self._office is None or (not self.stands_by and self._coordinator.over)
        for name in [name for name in self.peers if over and name.startswith("server/")]:
            self.send(name, m.Stop(""))  # one that was added by hand is nobody's child
        if self._campaign is not None:
            self._campaign.cancel()
        await super().close()
        if self._office is not None:
            await self._office.close(over)
        self._thread.shutdown(wait=False)


def _begin(resume: str | None) -> tuple[int, Samples]:
    """Where a job begins: after this clock, with these samples in the log. SnapshotError for no snapshot."""
    if resume is None:
        return 0, (None, ())
    manifest = snapshot.read_manifest(resume)
    try:
        state = msgspec.convert(manifest.state, State)
    except msgspec.ValidationError as error:
        raise SnapshotError(f"{resume}: the job's state in its manifest cannot be read: {error}") from None
    return manifest.clock, (state.dataset, state.accounted)


def _state(dataset: Dataset | None, accounted: tuple[tuple[int, int, int], ...]) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(State(dataset, accounted))
    return built


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal.runtime.coordinator", description=__doc__)
    parser.add_argument("--listen", default="tcp://127.0.0.1:0", metavar="ADDRESS")
    address = parser.parse_args(arguments).listen
    resume = os.environ.get("SHOAL_RESUME") or None

    async def start() -> Node:
        job = process.job_from()
        process.check_exposure(address, job)
        if job.registry and address.startswith(tcp.SCHEME) and tcp.host_and_port(address)[0] in EVERYWHERE:
            raise ConfigurationError(
                f"{address} is no address that a registry can name: listen at one by which others reach this machine"
            )
        node = CoordinatorNode(job, resume, epoch=process.epoch_from())
        listening = await node.listen(address)
        if job.registry:
            node.campaign(listening)
        else:
            print(process.READY, listening, flush=True)
        return node

    return process.run(start)


if __name__ == "__main__":
    sys.exit(main())
