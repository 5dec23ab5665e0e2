"""Snapshots under way: an entry of the log names the directory, each shard writes its file, and
the manifest, written last, makes them one snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.vocabulary import Dataset, TableSpec, server_name, worker_name
from shoal.wire import messages as m

Samples = tuple[Dataset | None, tuple[tuple[int, int, int], ...]]  # of this training set: (data epoch, start, stop)


@dataclass
class Saving:
    """One snapshot: who asked, the entry that carries it, the files that are complete."""

    request: m.SnapshotRequest
    commit: m.Commit
    clock: int
    samples: Samples  # in the log up to there
    files: dict[int, str] = field(default_factory=dict)  # by shard


@dataclass
class Savings:
    """Snapshots by sequence number of their entry, and the last answers, to repeat."""

    shards: int
    under_way: dict[int, Saving] = field(default_factory=dict)
    answered: dict[int, m.SnapshotDone] = field(default_factory=dict)  # by worker

    def again(self, request: m.SnapshotRequest) -> list[k.Effect] | None:
        """The answer to a repeated request; None for a new one."""
        done = self.answered.get(request.worker)
        if done is not None and (done.incarnation, done.number) == (request.incarnation, request.number):
            return [k.Send(worker_name(request.worker), done)]
        if done is not None and done.incarnation == request.incarnation and done.number > request.number:
            return []  # repeated, and overtaken by the worker's next request
        for saving in self.under_way.values():
            if saving.request == request:
                silent = [shard for shard in range(self.shards) if shard not in saving.files]
                return [k.Send(server_name(shard), saving.commit) for shard in silent]
        return None

    def begin(self, request: m.SnapshotRequest, commit: m.Commit, clock: int, samples: Samples) -> None:
        self.under_way[commit.seq] = Saving(request, commit, clock, samples)

    def saved(self, saved: m.Saved, spec: TableSpec) -> list[k.Effect]:
        """One shard has written its file, or could not."""
        saving = self.under_way.get(saved.seq)
        if saving is None:
            return []
        if saved.error:
            return self._answer(saved.seq, f"server {saved.shard}: {saved.error}")
        if saved.shard in saving.files:
            return []
        saving.files[saved.shard] = saved.file
        if len(saving.files) < self.shards:
            return []
        files = tuple(saving.files[shard] for shard in range(self.shards))
        request = saving.request
        return [k.Manifest(request.path, saved.seq, saving.clock, files, spec, *saving.samples, request.keep)]

    def recorded(self, version: int, error: str) -> list[k.Effect]:
        """The manifest is written, or could not be."""
        return self._answer(version, error) if version in self.under_way else []

    def refuse(self, request: m.SnapshotRequest, error: str) -> list[k.Effect]:
        """It cannot be written now; however late it is repeated, the answer stays."""
        done = m.SnapshotDone(request.worker, request.incarnation, request.number, request.path, 0, error)
        self.answered[request.worker] = done
        return [k.Send(worker_name(request.worker), done)]

    def _answer(self, version: int, error: str) -> list[k.Effect]:
        request = self.under_way.pop(version).request
        done = m.SnapshotDone(request.worker, request.incarnation, request.number, request.path, version, error)
        self.answered[request.worker] = done
        return [k.Send(worker_name(request.worker), done)]
