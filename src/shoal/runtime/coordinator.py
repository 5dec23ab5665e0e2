"""The coordinator's process: `python -m shoal.runtime.coordinator --listen tcp://127.0.0.1:0`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shoal.config import Job
from shoal.core import machine as k
from shoal.core.coordinator import Coordinator
from shoal.errors import SnapshotError
from shoal.runtime import process
from shoal.runtime.node import Node
from shoal.storage import snapshot
from shoal.transport import Wrap, unwrapped
from shoal.vocabulary import COORDINATOR
from shoal.wire import messages as m


class CoordinatorNode(Node):
    """Drives a Coordinator; writes the manifests of snapshots.

    epoch: above 1 when it takes the place of one that died: grows with each of them.
    """

    def __init__(self, job: Job, resume: Path | None = None, wrap: Wrap = unwrapped, epoch: int = 1) -> None:
        super().__init__(COORDINATOR, job, wrap)
        clock = snapshot.read_manifest(resume).clock if resume is not None else 0
        self._coordinator = Coordinator(job, epoch, clock_at_start=clock, pid=os.getpid(), recovers=epoch > 1)

    def machine(self) -> Coordinator:
        return self._coordinator

    def broke(self, error: Exception) -> None:
        super().broke(error)
        for name in self.peers:
            self.send(name, m.Stop(f"the coordinator met a defect of Shoal: {error!r}"))

    def perform(self, effect: k.Effect) -> None:
        match effect:
            case k.Manifest(path, version, clock, files, spec):
                error = ""
                try:
                    snapshot.write_manifest(path, self.job.name, version, clock, files, spec)
                except (SnapshotError, OSError) as failure:
                    error = str(failure)
                self.event(k.Recorded(version, error))
            case k.Begun():
                self.log(process.BEGUN)
            case _:
                raise TypeError(f"the coordinator's driver cannot perform {effect!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal.runtime.coordinator", description=__doc__)
    parser.add_argument("--listen", default="tcp://127.0.0.1:0", metavar="ADDRESS")
    address = parser.parse_args(arguments).listen
    resume = os.environ.get("SHOAL_RESUME")

    async def start() -> Node:
        job = process.job_from()
        process.check_exposure(address, job)
        node = CoordinatorNode(job, Path(resume) if resume else None, epoch=process.epoch_from())
        print(process.READY, await node.listen(address), flush=True)
        return node

    return process.run(start)


if __name__ == "__main__":
    sys.exit(main())
