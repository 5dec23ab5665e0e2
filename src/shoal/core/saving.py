"""Snapshots under way: an entry of the log names the directory, each shard writes its file, each worker tells its
random state and writes what its codecs have lost, and the manifest, written last, makes them one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.vocabulary import Dataset, TableSpec, server_name, worker_name
from shoal.wire import messages as m
from shoal.wire.forming import NOTHING

Samples = tuple[Dataset | None, tuple[tuple[int, int, int], ...]]  # of this training set: (data epoch, start, stop)


@dataclass
class Saving:
    """One snapshot: who asked, the entry that carries it, the files that are complete.

    recalls: what was asked of workers that have not answered, by worker. asked_at: when they were, last.
    """

    request: m.SnapshotRequest
    commit: m.Commit
    clock: int
    samples: Samples  # in the log up to there
    recalls: dict[int, m.Recall]
    asked_at: int
    files: dict[int, str] = field(default_factory=dict)  # by shard
    random: dict[int, bytes] = field(default_factory=dict)  # by worker
    lost: dict[int, str] = field(default_factory=dict)  # by worker: a file of what its codecs have lost


@dataclass
class Savings:
    """Snapshots by sequence number of their entry, and the last answers, to repeat."""

    shards: int
    under_way: dict[int, Saving] = field(default_factory=dict)
    answered: dict[int, m.SnapshotDone] = field(default_factory=dict)  # by worker

    def again(self, request: m.SnapshotRequest, primaries: Sequence[int]) -> list[k.Effect] | None:
        """The answer to a repeated request; None for a new one. primaries: by shard."""
        done = self.answered.get(request.worker)
        if done is not None and (done.incarnation, done.number) == (request.incarnation, request.number):
            return [k.Send(worker_name(request.worker), done)]
        if done is not None and done.incarnation == request.incarnation and done.number > request.number:
            return []  # repeated, and overtaken by the worker's next request
        for saving in self.under_way.values():
            if saving.request == request:
                silent = [primary for shard, primary in enumerate(primaries) if shard not in saving.files]
                return [k.Send(server_name(primary), saving.commit) for primary in silent]
        return None

    def begin(
        self,
        request: m.SnapshotRequest,
        commit: m.Commit,
        clock: int,
        samples: Samples,
        workers: Iterable[tuple[int, int]],
        recalled: int,
        used: Mapping[int, tuple[int, int]],
        now: int,
    ) -> list[k.Effect]:
        """A snapshot after `clock`. workers, with their incarnations: asked for their random state at `recalled`, and
        for what their codecs had lost up to the contribution that the log has `used` last."""
        facts = (commit.seq, recalled, request.path)
        recalls = {
            worker: m.Recall(worker, incarnation, *facts, used.get(worker, NOTHING)) for worker, incarnation in workers
        }
        self.under_way[commit.seq] = Saving(request, commit, clock, samples, recalls, now)
        return [k.Send(worker_name(worker), recall) for worker, recall in recalls.items()]

    def resend(self, now: int, resend_ms: int) -> list[k.Effect]:
        """Ask workers again that have not told their random state."""
        effects: list[k.Effect] = []
        for saving in self.under_way.values():
            if now - saving.asked_at >= resend_ms:
                saving.asked_at = now
                effects += [k.Send(worker_name(worker), recall) for worker, recall in saving.recalls.items()]
        return effects

    def recalled(self, answer: m.Recalled, spec: TableSpec) -> list[k.Effect]:
        """A worker tells its random state."""
        saving = self.under_way.get(answer.seq)
        if saving is None or saving.recalls.pop(answer.worker, None) is None:
            return []
        if answer.state:
            saving.random[answer.worker] = answer.state
        if answer.file:
            saving.lost[answer.worker] = answer.file
        return self._complete(saving, spec)

    def gone(self, worker: int, spec: TableSpec | None) -> list[k.Effect]:
        """This worker is not waited for any more."""
        left = [saving for saving in self.under_way.values() if saving.recalls.pop(worker, None) is not None]
        return [effect for saving in left if spec is not None for effect in self._complete(saving, spec)]

    def saved(self, saved: m.Saved, shard: int, spec: TableSpec) -> list[k.Effect]:
        """The primary of a shard has written its file, or could not."""
        saving = self.under_way.get(saved.seq)
        if saving is None:
            return []
        if saved.error:
            return self._answer(saved.seq, f"server {saved.server}: {saved.error}")
        if shard in saving.files:
            return []
        saving.files[shard] = saved.file
        return self._complete(saving, spec)

    def _complete(self, saving: Saving, spec: TableSpec) -> list[k.Effect]:
        """What is left to do once every shard and every worker has done its part."""
        if len(saving.files) < self.shards or saving.recalls:
            return []
        files = tuple(saving.files[shard] for shard in range(self.shards))
        request, random = saving.request, tuple(sorted(saving.random.items()))
        done = (saving.commit.seq, saving.clock, files, spec, *saving.samples)
        lost = tuple(file for _, file in sorted(saving.lost.items()))
        return [k.Manifest(request.path, *done, request.keep, random, lost)]

    def recorded(self, version: int, error: str) -> list[k.Effect]:
        """The manifest is written, or could not be."""
        return self._answer(version, error) if version in self.under_way else []

    def lost(self, shard: int, server: int) -> list[k.Effect]:
        """The primary that was to write this shard's file is gone."""
        open_ones = [version for version, saving in self.under_way.items() if shard not in saving.files]
        error = f"server {server} was lost while it was written; take another one"
        return [effect for version in open_ones for effect in self._answer(version, error)]

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
