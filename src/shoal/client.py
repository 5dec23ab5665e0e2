"""What a training script holds: its place in a job, from `shoal.connect()`.

Under `shoal run` the job is the cluster that SHOAL_* variables describe; alone it is a server
inside the script's own process. The script is the same.
"""

from __future__ import annotations

import atexit
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from shoal.adapters.local_steps import LocalSteps
from shoal.config import Job, Limits
from shoal.errors import ConfigurationError
from shoal.policy import Policy, Sync
from shoal.runtime import process
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.worker import Worker
from shoal.storage.place import absolute

if TYPE_CHECKING:
    from shoal.adapters.torch import Loader, LocalOptimizer, Optimizer
    from shoal.optim import Rule


def connect(address: str | None = None, *, resume: str | os.PathLike[str] | None = None) -> ParameterServer:
    """Join a job; the first call of a training script.

    address: the coordinator's ("tcp://host:port"), with SHOAL_TOKEN and SHOAL_JOB set as the job has
    them. Default: SHOAL_COORDINATOR, which `shoal run` sets; without either, a server is started in
    this process. resume: a snapshot to begin from, by its path or URL (only without a cluster: a cluster
    is resumed where it is started).

    Raises SnapshotError when it cannot be read, StartupError when the coordinator or a server is not there
    by its deadline, RefusedError when it is not this job's.
    """
    coordinator = address or os.environ.get("SHOAL_COORDINATOR")
    if coordinator is not None:
        if resume is not None:
            raise ConfigurationError("a cluster is resumed where it is started: shoal run --resume PATH")
        job = process.job_from()
        source = os.environ.get("SHOAL_RESUME") or None
        rank, estate = process.rank_from("SHOAL_RANK"), process.take_estate()
        return ParameterServer(Worker(job, coordinator, rank, resumed_from=source, estate=estate), None)
    job = Job(limits=Limits.from_environment())
    source = absolute(resume) if resume is not None else None
    embedded = EmbeddedJob(job, source)
    worker = Worker(job, embedded.address, 0, thread=embedded.thread, resumed_from=source)
    return ParameterServer(worker, embedded)


class ParameterServer:
    """One worker's place in a job. Leaves it politely at `close()`, and at the end of the script."""

    def __init__(self, worker: Worker, embedded: EmbeddedJob | None) -> None:
        self.worker = worker
        self._embedded = embedded
        atexit.register(self.close)

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self.worker.rank

    @property
    def workers(self) -> int:
        """How many workers the job was started with."""
        return self.worker.workers

    @overload
    def optimizer(self, params: Any, *, sync: LocalSteps, push: str = "", pull: str = "") -> LocalOptimizer: ...
    @overload
    def optimizer(self, params: Any, rule: Rule, sync: Policy | None = None, **options: Any) -> Optimizer: ...
    def optimizer(
        self, params: Any, rule: Rule | None = None, sync: Policy | LocalSteps | None = None, **options: Any
    ) -> Optimizer | LocalOptimizer:
        """A torch.optim.Optimizer whose step happens on the servers; see shoal.adapters.torch.

        With sync=LocalSteps(every=..., inner=...) most steps are the worker's own, and there is no rule beside it.
        """
        from shoal.adapters import torch

        if isinstance(sync, LocalSteps):
            if rule is not None:
                raise ConfigurationError(
                    "LocalSteps has its rules in itself, inner= and outer=: leave out the rule, as in "
                    "ps.optimizer(model, sync=shoal.LocalSteps(every=50, inner=torch.optim.AdamW(...)))"
                )
            return torch.LocalOptimizer(self.worker, params, sync, **options)
        if rule is None:
            raise ConfigurationError("ps.optimizer(...) needs a rule, such as shoal.AdamW(lr=3e-4), after the model")
        policy = Sync() if sync is None else sync
        make = torch.ShardedOptimizer if torch.is_sharded(params) else torch.optimizer
        return make(self.worker, params, rule, sync=policy, **options)

    def loader(self, dataset: Any, batch_size: int, **options: Any) -> Loader:
        """Batches of samples that no other worker has in this data epoch; see shoal.adapters.torch."""
        from shoal.adapters import torch

        return torch.loader(self.worker, dataset, batch_size, **options)

    def report(self, **figures: float) -> None:
        """Show figures (loss=..., tokens_per_second=...) in `shoal status` and the live view.

        Anything that float() takes will do; what it does not is a ConfigurationError, here and now.
        """
        self.worker.report(figures)

    def snapshot(self, path: str | os.PathLike[str], *, wait: bool = True, keep: int | None = None) -> int:
        """Write parameters and optimizer state, at one version, to `path`; returns the version.

        path: a directory that servers and coordinator share, or any URL of fsspec's ("s3://bucket/run/1").
        wait=False: return 0 at once, and let training go on while it is written; the next snapshot, or close(),
        waits for it and raises what went wrong.
        keep: when this one is complete, remove what is older than the `keep` newest complete ones directly beside
            it, whoever wrote them. One that is damaged is neither counted nor removed. What cannot be removed is
            a line of the coordinator's, and no error: the snapshot is there.

        Raises SnapshotError when it cannot be written, ConfigurationError for a keep below 1.
        """
        if keep is not None and keep < 1:
            raise ConfigurationError(f"ps.snapshot(..., keep={keep!r}) must be 1 or more: this snapshot itself stays")
        self.worker.begin_snapshot(absolute(path), keep or 0)
        return self.worker.await_snapshot() if wait else 0

    def close(self) -> None:
        """Leave the job. Safe to call twice."""
        atexit.unregister(self.close)
        self.worker.close()
        if self._embedded is not None:
            self._embedded.close()
            self._embedded = None

    def __enter__(self) -> ParameterServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
