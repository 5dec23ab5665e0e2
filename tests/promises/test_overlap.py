"""With overlap=True a module's forward waits for its own parameters, and for nobody else's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from shoal.adapters.torch import loader, optimizer
from shoal.config import Job
from shoal.core import session as s
from shoal.errors import ConfigurationError
from shoal.optim import SGD
from shoal.policy import Async, Sync
from shoal.runtime.embedded import EmbeddedJob
from shoal.runtime.progress import Progress
from shoal.runtime.worker import Worker
from shoal.transport.base import Connection, Wrapped
from shoal.wire import messages as m
from shoal.wire.framing import Buffer

from .cluster import QUICK

SIZE = 40  # a layer is one block of its own frame


class Gate:
    """Holds back frames of parameters whose blocks are all at or after `first`, until it is opened."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.held: list[tuple[Wrapped, m.Message, Sequence[Buffer]]] = []

    def wrap(self, connection: Connection) -> Connection:
        return Gated(connection, self)

    def open(self) -> None:
        """Let go of what is held back, once it is there."""
        until(lambda: bool(self.held), "parameters are on their way")
        opened = threading.Event()
        self.held[0][0].inner._loop.call_soon_threadsafe(self._open, opened)  # type: ignore[attr-defined]
        assert opened.wait(10)

    def _open(self, opened: threading.Event) -> None:
        self.first = None
        held, self.held = self.held, []
        for connection, message, payload in held:
            connection.inner.send(message, payload)
        opened.set()


class Gated(Wrapped):
    def __init__(self, inner: Connection, gate: Gate) -> None:
        super().__init__(inner)
        self._gate = gate

    def send(self, message: m.Message, payload: Sequence[Buffer] = (), files: Sequence[int] = ()) -> None:
        first = self._gate.first
        if isinstance(message, m.Parameters) and first is not None and min(message.blocks) >= first:
            self._gate.held.append((self, message, [bytes(piece) for piece in payload]))
        else:
            super().send(message, payload, files)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def worker(gate: Gate) -> Iterator[Worker]:
    limits = replace(QUICK, frame_bytes_target=SIZE * SIZE * 4, resend_ms=60_000)
    embedded = EmbeddedJob(Job(limits=limits, transport="tcp"), wrap=gate.wrap, scheme="tcp")
    worker = Worker(embedded.job, embedded.address, 0)
    yield worker
    worker.close()
    embedded.close()


class Recording(nn.Linear):
    """A layer that says when its forward ran."""

    def __init__(self, name: str, ran: list[str]) -> None:
        super().__init__(SIZE, SIZE, bias=False)
        self.name, self.ran = name, ran

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ran.append(self.name)
        return super().forward(x)


def test_the_first_module_goes_on_while_the_second_waits(worker: Worker, gate: Gate) -> None:
    ran: list[str] = []
    model = nn.Sequential(Recording("first", ran), Recording("second", ran))
    steps = optimizer(worker, model, SGD(lr=0.1), overlap=True)
    x = torch.ones(1, SIZE)
    model(x).sum().backward()
    ran.clear()
    gate.first = 1
    before = [layer.weight.detach().clone() for layer in model]
    steps.step()  # returns, though the second module's parameters are held back
    thread = threading.Thread(target=model, args=(x,), daemon=True)
    thread.start()
    until(lambda: ran == ["first"], "the first module runs")
    thread.join(0.2)
    assert thread.is_alive() and ran == ["first"], "the second waits for its parameters"
    assert not torch.equal(model[0].weight, before[0])
    gate.open()
    thread.join(10)
    assert ran == ["first", "second"]
    steps.wait()
    assert all(not torch.equal(layer.weight, old) for layer, old in zip(model, before, strict=True))


def test_the_next_samples_come_before_the_parameters(worker: Worker, gate: Gate) -> None:
    model = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False), nn.Linear(SIZE, SIZE, bias=False))
    steps = optimizer(worker, model, SGD(lr=0.1), overlap=True)
    batches = iter(loader(worker, torch.ones(12, SIZE), 2))
    seen = [next(batches)]
    for _ in range(4):
        model(seen[-1]).sum().backward()
        gate.first = 0
        steps.step()
        steps.zero_grad()
        seen.append(next(batches))  # nothing of the new parameters has left the server
        gate.open()
    model(seen[-1]).sum().backward()
    steps.step()
    assert len(list(batches)) == 1, "six batches of two in all"


@pytest.mark.filterwarnings("error")
def test_a_module_may_run_twice_and_the_data_be_passed_over_twice(worker: Worker) -> None:
    layer = nn.Linear(SIZE, SIZE)
    steps = optimizer(worker, layer, SGD(lr=0.01), overlap=True)
    for _ in range(2):
        for batch in loader(worker, torch.ones(6, SIZE), 2):
            layer(layer(batch)).sum().backward()  # its hook waits once, and changes nothing the second time
            steps.step()
            steps.zero_grad()
    steps.wait()
    assert steps.version == 7  # the seed and two passes of three steps


def test_a_state_dict_waits_for_all_of_it(worker: Worker) -> None:
    model = nn.Linear(SIZE, SIZE)
    steps = optimizer(worker, model, SGD(lr=0.5), overlap=True)
    before = model.weight.detach().clone()
    for _ in range(3):
        model(torch.ones(1, SIZE)).sum().backward()
        steps.step()
        steps.zero_grad()
    assert torch.allclose(model.state_dict()["weight"], before - 3 * 0.5)


@pytest.mark.parametrize("sync", [Sync(quorum=0.5), Async()], ids=str)
def test_overlap_is_refused_where_parameters_change_under_the_worker(worker: Worker, sync: Sync | Async) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match="needs the module itself.*Sync"):
        optimizer(worker, model, SGD(lr=0.5), sync=sync, overlap=True)
    with pytest.raises(ConfigurationError, match="needs the module itself.*Sync"):
        optimizer(worker, model.parameters(), SGD(lr=0.5), overlap=True)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def test_what_arrives_before_the_session_knows_of_the_step_does_not_end_the_wait_for_staging() -> None:
    session, progress = s.Session(), Progress()
    progress.begin()
    progress.of(session)  # an acknowledgement, say, of a block that left during backward
    assert not progress.staged
    session.step(s.Finish(1, (), (0.1,)), now=0)
    progress.of(session)
    assert progress.staged
