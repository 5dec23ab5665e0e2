"""Bad input is answered by one error that names the fact and the way out; the job of the others goes on."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from shoal.adapters.torch import loader, optimizer
from shoal.config import PROTOCOL, Job, Limits
from shoal.errors import (
    ConfigurationError,
    JobError,
    NonFiniteGradientError,
    RefusedError,
    StartupError,
)
from shoal.optim import SGD
from shoal.runtime.coordinator import CoordinatorNode
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.loop_thread import LoopThread
from shoal.runtime.worker import Worker
from shoal.vocabulary import Contributor, Dataset, Lease, TableSpec
from shoal.wire import messages as m
from shoal.wire.framing import HEADER, MAGIC, Decoder, encode

from .cluster import QUICK, Setting, begin, join, joined, promised_table, running, step, to_bytes, together

TCP = Setting(servers=2, scheme="tcp")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Nothing in the block may take longer."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


# --- tables that do not match -------------------------------------------------------------------


def changed(spec: TableSpec, tensor: int, **facts: object) -> TableSpec:
    tensors = list(spec.tensors)
    tensors[tensor] = msgspec.structs.replace(tensors[tensor], **facts)
    return msgspec.structs.replace(spec, tensors=tuple(tensors))


SPEC = promised_table()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(SPEC, 0, shape=(37, 12)), r"parameter 't0' has shape \(70, 90\) in the job and \(37, 12\) in this"),
        (changed(SPEC, 4, dtype="bfloat16"), r"parameter 't4' has dtype float32 in the job and bfloat16 in this"),
        (changed(SPEC, 1, name="other"), r"parameter 't1' has name t1 in the job and other in this worker"),
        (msgspec.structs.replace(SPEC, tensors=SPEC.tensors[:4]), "the job's model has 5 parameters, this worker's 4"),
        (msgspec.structs.replace(SPEC, clip_norm=3.0), r"clip_norm is 2.0 in the job and 3.0 in this worker"),
        (msgspec.structs.replace(SPEC, rule="sgd"), "rule is adamw in the job and sgd in this worker"),
    ],
)
def test_a_table_that_is_not_the_jobs_is_refused_by_name(other: TableSpec, words: str) -> None:
    with running(1, Setting(servers=2)) as embedded, joined(embedded, 0) as first:
        begin(first, SPEC)
        with joined(embedded, 1) as second, pytest.raises(RefusedError, match=words + ".*every worker must build"):
            second.declare(other)
        step(first, SPEC)
        assert first.clock == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (changed(SPEC, 2, dtype="int64"), "'t2'.*int64"),
        (changed(SPEC, 2, shape=(5, -1)), "'t2'"),
        (msgspec.structs.replace(SPEC, rule="magic"), "magic.*adamw"),
        (msgspec.structs.replace(SPEC, block_elements_max=0), "block_elements_max"),
        (msgspec.structs.replace(SPEC, tensors=()), "no parameter"),
        (changed(SPEC, 2, group=7), "'t2'.*group 7"),
    ],
)
def test_a_table_that_no_server_can_hold_is_refused(spec: TableSpec, words: str) -> None:
    with running(1) as embedded, joined(embedded, 0) as worker, pytest.raises((RefusedError, JobError), match=words):
        worker.declare(spec)


def test_memory_of_another_size_is_not_bound() -> None:
    with running(1) as embedded, joined(embedded, 0) as worker:
        worker.declare(SPEC)
        wrong = [np.zeros(3, np.uint8) for _ in SPEC.tensors]
        with pytest.raises(ConfigurationError, match="t0 has 25200 bytes, not the 3 that are bound to it"):
            worker.bind(wrong)


# --- who is missing -----------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_missing_coordinator_is_named_with_its_address_and_the_time_waited() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    job = Job("promise", limits=replace(QUICK, connect_ms=300))
    words = rf"cannot reach coordinator: nothing answered at {address} in 0.3 s"
    with within(5), pytest.raises(StartupError, match=words):
        Worker(job, address, 0)


def test_a_server_process_without_a_coordinator_ends_with_one_line() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    facts = {"SHOAL_COORDINATOR": address, "SHOAL_SERVER_INDEX": "0", "SHOAL_CONNECT_MS": "300"}
    command = [sys.executable, "-m", "shoal.runtime.server"]
    ended = subprocess.run(command, env=os.environ | facts, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("shoal: error: server/0 cannot reach coordinator: nothing answered at " + address)


def test_something_else_at_the_coordinators_address_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        job = Job("promise", limits=replace(QUICK, connect_ms=300))
        words = rf"coordinator at {address} took the connection.*did not answer"
        with within(5), pytest.raises(StartupError, match=words):
            Worker(job, address, 0)


@contextmanager
def lonely(job: Job) -> Iterator[str]:
    """A coordinator without any server; gives its address."""
    thread = LoopThread("test-coordinator")

    async def open_one() -> CoordinatorNode:
        return CoordinatorNode(job)

    node = thread.call(open_one())
    try:
        yield thread.call(node.listen("tcp://127.0.0.1:0"))
    finally:
        thread.call(node.close())
        thread.stop()


def test_a_missing_server_is_named_after_the_deadline() -> None:
    job = Job("promise", workers=1, servers=2, limits=replace(QUICK, start_ms=400))
    words = "job promise did not start within 0.4 s: server 0, 1 of 2 did not register with the coordinator"
    with within(10), lonely(job) as address, pytest.raises(StartupError, match=words):
        Worker(job, address, 0)


def test_a_missing_worker_is_named_after_the_deadline() -> None:
    limits = replace(QUICK, start_ms=500)
    refused = pytest.raises(StartupError, match="within 0.5 s: 1 of 2 workers have joined, and not worker 1")
    with within(10), running(2, limits=limits) as embedded, joined(embedded, 0) as worker, refused:
        begin(worker, SPEC)


# --- who does not belong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"token": "wrong"}, "the token does not match that of job 'promise': set SHOAL_TOKEN"),
        ({"name": "other"}, "coordinator belongs to job 'promise', not to 'other': check the address"),
    ],
)
def test_a_worker_of_another_job_is_refused(facts: dict[str, str], words: str) -> None:
    with running(1, TCP) as embedded, within(5), pytest.raises(RefusedError, match=words):
        Worker(replace(embedded.job, **facts), embedded.address, 0)


def test_another_version_is_told_so() -> None:
    with running(1, TCP) as embedded:
        hello = m.Hello(PROTOCOL + 1, "promise", "secret", "worker/0")
        (answer,) = exchange(embedded.address, encode(hello))
    assert answer == m.Refused(
        "Hello",
        f"coordinator speaks protocol {PROTOCOL}, worker/0 {PROTOCOL + 1}: install the same version of shoal on both",
    )


def test_frames_of_another_version_are_told_so() -> None:
    with running(1, TCP) as embedded:
        body = msgspec.msgpack.encode(["Hello", PROTOCOL + 1])
        (answer,) = exchange(embedded.address, HEADER.pack(MAGIC, PROTOCOL + 1, 0, len(body), 0) + body)
    assert isinstance(answer, m.Refused)
    assert f"protocol {PROTOCOL + 1}" in answer.reason
    assert "version" in answer.reason


def test_a_second_job_on_the_same_port_is_told_which() -> None:
    with running(1, TCP) as embedded:
        ended = subprocess.run(
            [sys.executable, "-m", "shoal.runtime.coordinator", "--listen", embedded.address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 1
        (line,) = ended.stderr.splitlines()
        assert line.startswith("shoal: error: ")
        assert f"{embedded.address.removeprefix('tcp://')} is taken, perhaps by another Shoal job" in line
        with joined(embedded, 0) as worker:
            begin(worker, SPEC)


# --- bytes that mean nothing --------------------------------------------------------------------


def exchange(address: str, data: bytes) -> Sequence[m.Message]:
    """Send bytes as any stranger can, and collect the answers until the other side closes."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    answers: list[m.Message] = []
    decoder = Decoder(Limits(), lambda message, payload_bytes: None, lambda message, delivered: answers.append(message))
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        try:
            connection.sendall(data)
            while received := connection.recv(1 << 16):
                decoder.feed(received)
        except ConnectionError:
            pass  # closed on bytes that it had not read
    return answers


def noise(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def greeting(name: str) -> bytes:
    return encode(m.Hello(PROTOCOL, "promise", "secret", name))


STRANGE = {
    "noise": noise(1, 4_000),
    "much noise": noise(2, 2_000_000),
    "a header that promises too much": HEADER.pack(MAGIC, PROTOCOL, 0, 1 << 31, 1 << 60),
    "a body of noise": HEADER.pack(MAGIC, PROTOCOL, 0, 500, 0) + noise(3, 500),
    "a message before the handshake": encode(m.Commit(9, 1, "update")),
    "a payload before the handshake": encode(m.Stage(Contributor(0, 0, 1, 0), (0,)), 100) + noise(4, 100),
    "noise after the handshake": greeting("worker/7") + noise(5, 4_000),
    "a payload that nobody takes": greeting("worker/7") + encode(m.Heartbeat("worker/7", 0, 0, 0), 64) + noise(6, 64),
}


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("node", ["coordinator", "server"])
def test_strange_bytes_close_their_connection_and_harm_nobody(node: str, what: str) -> None:
    with running(2, TCP) as embedded:
        workers = [join(embedded, rank) for rank in range(2)]
        together(*(lambda worker=worker: begin(worker, SPEC) for worker in workers))
        address = embedded.address if node == "coordinator" else server_address(embedded)
        with within(10):
            answers = exchange(address, STRANGE[what])
        assert all(isinstance(answer, m.Refused | m.Accepted) for answer in answers)
        together(*(lambda worker=worker: step(worker, SPEC) for worker in workers))
        assert [worker.clock for worker in workers] == [2, 2]
        together(*(worker.close for worker in workers))


def server_address(embedded: EmbeddedJob) -> str:
    coordinator = embedded.nodes[0]
    assert isinstance(coordinator, CoordinatorNode)
    return coordinator.machine().membership.servers[0].address


# Well-formed, from someone who knows the token, and out of place.
MISPLACED = {
    "a shard that is none": m.Applied(99, 1),
    "an answer for another server": m.Created(1, 0),
    "norms of a worker": m.Norms(0, 1, "norm", ((0, (1.0,)),)),
    "a file of no server": m.Saved(-1, 1, "x"),
    "a heartbeat of nobody": m.Heartbeat("worker/x", 0, 0, 0),
    "a heartbeat of no server": m.Heartbeat("server/x", 0, 0, 0),
    "a rank below none": m.Join(-7, 5, 1),
    "a server of a worker": m.Register(0, "tcp://127.0.0.1:1", 1),
    "a coordinator's word": m.Stop("be gone"),
    "samples of no worker": m.LeaseRequest(5, 5, 0, 1, Dataset(1, 1, 1)),
    "ready for a clock to come": m.Ready(Contributor(0, 0, 7, 0), 1, (), (0.1,)),
}


@pytest.mark.parametrize("what", MISPLACED)
def test_a_message_out_of_place_harms_nobody(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    with running(1, TCP) as embedded, joined(embedded, 0) as worker:
        values = begin(worker, SPEC)
        host, _, port = embedded.address.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as stranger:
            stranger.sendall(greeting("worker/7") + encode(MISPLACED[what]) + encode(m.StatusRequest()))
            stranger.recv(1 << 16)
            step(worker, SPEC)
            step(worker, SPEC)
        assert worker.clock == 3
        final = to_bytes(values)
    assert "Traceback" not in "".join(capfd.readouterr())
    with running(1, TCP) as embedded, joined(embedded, 0) as worker:
        values = begin(worker, SPEC)
        step(worker, SPEC)
        step(worker, SPEC)
        assert to_bytes(values) == final


# --- gradients, datasets --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_by_name_and_changes_nothing(value: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    with running(1) as embedded, joined(embedded, 0) as worker:
        steps = optimizer(worker, model, SGD(lr=0.1))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        model(torch.ones(5, 3)).sum().backward()
        model[1].weight.grad[0, 0] = value  # type: ignore[index]
        with pytest.raises(NonFiniteGradientError, match=r"worker 0, clock 1: the gradient of parameter '1.weight'"):
            steps.step()
        assert all(torch.equal(was, now) for was, now in zip(before, model.parameters(), strict=True))
        steps.zero_grad()
        model(torch.ones(5, 3)).sum().backward()
        steps.step()
        assert steps.clock == 2
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_dataset_smaller_than_the_worker_count_is_refused() -> None:
    dataset = torch.utils.data.TensorDataset(torch.zeros(2, 1))
    refused = pytest.raises(ConfigurationError, match=r"2 samples.*3 workers")
    with running(3) as embedded, joined(embedded, 0) as worker, refused:
        loader(worker, dataset, batch_size=1)


def test_two_datasets_are_one_too_many() -> None:
    def work(rank: int) -> Lease | None:
        with joined(embedded, rank) as worker:
            begin(worker, SPEC)
            return worker.lease(Dataset(100 + rank, 4, 0), 0)

    refused = pytest.raises(RefusedError, match="this worker asks for Dataset.*one training set")
    with running(2) as embedded, within(20), refused:
        together(*(lambda rank=rank: work(rank) for rank in range(2)))


# --- nodes that die -------------------------------------------------------------------------------


@pytest.mark.parametrize(("node", "words"), [(1, "server 0 .* died at version"), (0, "coordinator is gone")])
def test_a_node_that_dies_ends_the_job_with_its_name(node: int, words: str) -> None:
    limits = replace(QUICK, grace_ms=200, connect_ms=1_000)
    with running(2, TCP, limits) as embedded:
        workers = [join(embedded, rank) for rank in range(2)]
        together(*(lambda worker=worker: begin(worker, SPEC) for worker in workers))

        def train(worker: Worker) -> None:
            while True:
                step(worker, SPEC)

        def work(worker: Worker) -> str:
            with pytest.raises(JobError) as caught:
                train(worker)
            return str(caught.value)

        def kill() -> str:
            time.sleep(0.1)
            embedded.thread.call(embedded.nodes[node].close())
            return ""

        with within(8):
            *errors, _ = together(*(lambda worker=worker: work(worker) for worker in workers), kill)
            together(*(worker.close for worker in workers))
        assert all(re.search(words, error) for error in errors), errors
