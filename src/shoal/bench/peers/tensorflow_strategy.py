"""Peer: TensorFlow's ParameterServerStrategy, as its tutorial builds it.

A chief schedules functions on workers, whose variables lie on a parameter server:

    for _ in workers: coordinator.schedule(step, args=(gradients,))    apply_gradients, then read the variables
    coordinator.join()

One such round is a step: as many functions as workers, so each worker has pushed once and read once. Two things
are not as with the other peers, and cannot be:

- The strategy is asynchronous. Each gradient is applied by itself as it arrives, N updates a step in place of one
  by the mean gradient. So the parameters are not those of the reference and are not compared with it (nor could
  they be to the bit: Keras adds Adam's epsilon before the correction of the bias, torch after it). What is checked:
  all are finite, each tensor has moved, and each was read by a worker as the server holds it in the end.
- Nobody can say which worker runs a function: an idle one takes the next. So each takes its own worker's gradients,
  which lie in that worker's memory: two sets, in turn, as large as those of the other peers.

What a worker has read stays in its memory. Gradients and parameters travel over gRPC, on loopback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shoal.adapters.torch.groups import settings_of
from shoal.bench.orders import Answer, Setup
from shoal.bench.peers import tensorflow_cluster
from shoal.bench.rules import RULES
from shoal.bench.shapes import gpt_shapes
from shoal.bench.turns import follow
from shoal.bench.verdict import WrongResultError
from shoal.bench.workload import SCALES, Preset, digest
from shoal.errors import DeadlineError

Arrays = Sequence[npt.NDArray[np.float32]]

STEP_SECONDS = 120.0  # the longest that a step may take, or the fetching of what came out


def lead(setup: Setup) -> None:
    """Be the chief: start the servers, then obey until the benchmark is over. Ends this process.

    Who may not have a network namespace is started once more, by the same process id, to ask for leave at once.
    """
    if not tensorflow_cluster.may_leave():
        os.execv(sys.executable, (*tensorflow_cluster.PROGRAM, *sys.argv[1:]))
    status = 0
    try:
        os.environ.update(tensorflow_cluster.QUIET, KERAS_HOME=str(Path(setup.control).parent / "keras"))
        cluster = tensorflow_cluster.start(setup.workers, len(os.sched_getaffinity(0)))
        _follow(setup, Training(setup, cluster))
    except BaseException:  # noqa: BLE001 - whatever it is, TensorFlow's threads may not keep this process alive
        traceback.print_exc()
        status = 1
    os._exit(status)  # and the servers, whose parent this thread is, end with it


class Training:
    """The variables, and the function that workers run."""

    def __init__(self, setup: Setup, cluster: tensorflow_cluster.Cluster) -> None:
        tensorflow: Any = importlib.import_module("tensorflow")
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)  # the chief computes nothing
        resolver = tensorflow.distribute.cluster_resolver.SimpleClusterResolver(
            tensorflow.train.ClusterSpec(cluster), rpc_layer="grpc"
        )
        strategy = tensorflow.distribute.ParameterServerStrategy(resolver)
        self._coordinator = tensorflow.distribute.coordinator.ClusterCoordinator(strategy)
        shapes = gpt_shapes(setup.params)
        self.start: Arrays = [weight.detach().numpy() for weight in Preset(shapes, ()).weights]
        with strategy.scope():
            self._variables = [tensorflow.Variable(value) for value in self.start]
            optimizer = optimizer_of(importlib.import_module("keras"), setup.optimizer)
            optimizer.build(self._variables)

        def gradients() -> Any:
            """Runs once on each worker: sets of gradients, in turn, handed out without a copy."""
            first, second = (
                tensorflow.data.Dataset.from_tensors(
                    tuple(scale * tensorflow.random.normal(shape) for _, shape in shapes)
                )
                for scale in SCALES
            )
            return first.concatenate(second).repeat()

        def replica(mine: Any) -> Any:
            # identity costs nothing, and places a gradient on this worker, as one that was computed would be
            found = [tensorflow.identity(gradient) for gradient in next(mine)]
            optimizer.apply_gradients(zip(found, self._variables, strict=True))
            return [variable.read_value() for variable in self._variables]

        self._gradients = iter(self._coordinator.create_per_worker_dataset(gradients))
        self._function = tensorflow.function(lambda mine: strategy.run(replica, args=(mine,)), autograph=False)
        self._workers = setup.workers
        self._read: list[Any] = []  # what the last step's functions have read, where it lies

    def step(self, number: int) -> None:
        """Every worker pushes once and reads once."""
        self._read = [self._coordinator.schedule(self._function, args=(self._gradients,)) for _ in range(self._workers)]
        self._coordinator.join()

    def parameters(self) -> Arrays:
        """As the server holds them."""
        return [variable.numpy() for variable in self._variables]

    def read(self) -> Sequence[Arrays]:
        """As the functions of the last step have read them."""
        return [value.fetch() for value in self._read]


def optimizer_of(keras: Any, name: str) -> Any:
    """Keras's own optimizer with the settings of RULES[name]."""
    settings = settings_of(RULES[name])
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate=settings["lr"], momentum=settings["momentum"])
    first, second = settings["betas"]
    same = {"learning_rate": settings["lr"], "beta_1": first, "beta_2": second, "epsilon": settings["eps"]}
    if name == "adam":
        return keras.optimizers.Adam(**same)
    return keras.optimizers.AdamW(weight_decay=settings["weight_decay"], **same)


def check(start: Arrays, held: Arrays, read: Sequence[Arrays]) -> None:
    """Raises WrongResultError when what came out cannot be that of an exchange.

    start: parameters at first. held: by the server in the end. read: by each function of the last step. Of two
    functions at once the one may read a tensor before the other updates it, but the last to update it reads it so.
    """
    for number, (before, after) in enumerate(zip(start, held, strict=True)):
        if not np.isfinite(after).all():
            raise WrongResultError(f"tensor {number} of tensorflow is not finite")
        if np.array_equal(before, after):
            raise WrongResultError(f"tensor {number} of tensorflow never moved: its gradients were not applied")
        if not any(np.array_equal(arrays[number], after) for arrays in read):
            raise WrongResultError(f"no worker of tensorflow has read tensor {number} as its server holds it")


def _follow(setup: Setup, training: Training) -> None:
    def step(number: int) -> None:
        with within(STEP_SECONDS, f"step {number} of tensorflow"):
            training.step(number)

    def outcome(steps: int) -> Answer:
        with within(STEP_SECONDS, "fetching tensorflow's parameters"):
            held = training.parameters()
            check(training.start, held, training.read())
        return Answer(digests=(digest(torch.from_numpy(array) for array in held),))

    follow(setup.control, setup.name, {"": step}, outcome)


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """DeadlineError in the main thread when the block takes longer."""

    def late(*_: object) -> None:
        raise DeadlineError(f"{what} was not over after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
