"""The coordinator's process: `python -m shoal.runtime.coordinator --listen tcp://127.0.0.1:0`."""

from __future__ import annotations

import argparse
import asyncio
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
from shoal.errors import SnapshotError
from shoal.runtime import process
from shoal.runtime.node import Node
from shoal.storage import shelf, snapshot
from shoal.storage.pace import paced
from shoal.storage.place import place
from shoal.transport import Wrap, unwrapped
from shoal.vocabulary import COORDINATOR, Dataset
from shoal.wire import messages as m


class State(msgspec.Struct, frozen=True):
    """What a snapshot keeps of the job beside its table: (data epoch, start, stop) of the samples in the log."""

    dataset: Dataset | None = None
    accounted: tuple[tuple[int, int, int], ...] = ()


class CoordinatorNode(Node):
    """Drives a Coordinator; writes the manifests of snapshots.

    epoch: above 1 when it takes the place of one that died: grows with each of them.
    """

    def __init__(self, job: Job, resume: str | None = None, wrap: Wrap = unwrapped, epoch: int = 1) -> None:
        clock, samples = _begin(resume)
        super().__init__(COORDINATOR, job, wrap)
        self._thread = process.beside("manifest")
        self._coordinator = Coordinator(job, epoch, clock, samples, epoch > 1, os.getpid())

    def machine(self) -> Coordinator:
        return self._coordinator

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
                snapshot.write_manifest(effect.path, *facts, dict(effect.random))
        except Exception as error:  # noqa: BLE001 - see above
            if not isinstance(error, SnapshotError | OSError | MemoryError):
                traceback.print_exc()
            return k.Recorded(effect.version, str(error) or type(error).__name__)
        if effect.keep:
            try:
                shelf.prune(place(effect.path).parent, effect.keep)
            except SnapshotError as error:
                self.warn(f"{effect.path} is complete, but {error}")
        return k.Recorded(effect.version, "")

    async def close(self) -> None:
        for name in [name for name in self.peers if name.startswith("server/")]:
            self.send(name, m.Stop(""))  # one that was added by hand is nobody's child
        await super().close()
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
        node = CoordinatorNode(job, resume, epoch=process.epoch_from())
        print(process.READY, await node.listen(address), flush=True)
        return node

    return process.run(start)


if __name__ == "__main__":
    sys.exit(main())
