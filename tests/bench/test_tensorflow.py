"""The TensorFlow peer: what can be known without TensorFlow, and one run where it is installed."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from shoal.bench.exchange import ExchangeRow
from shoal.bench.peers.catalogue import PEERS, left_out
from shoal.bench.peers.tensorflow_cluster import addresses
from shoal.bench.peers.tensorflow_strategy import check, optimizer_of, within
from shoal.bench.rows import Seconds
from shoal.bench.verdict import WrongResultError
from shoal.cli.bench import bench_app
from shoal.cli.bench.exchange import exchange_table
from shoal.errors import DeadlineError

ALONE = """
import socket
from shoal.bench.peers.tensorflow_cluster import enter_namespace
from shoal.errors import StartupError

try:
    enter_namespace()
except StartupError as error:
    print(error)
else:
    with socket.create_server(("127.0.0.1", 2222)) as server:
        socket.create_connection(("127.0.0.1", 2222), timeout=5).close()
    print([name for _, name in socket.if_nameindex()])
"""


def test_one_parameter_server_and_each_worker_have_an_address_on_loopback() -> None:
    assert addresses(2) == {"ps": ["127.0.0.1:2222"], "worker": ["127.0.0.1:2223", "127.0.0.1:2224"]}


def test_its_network_is_loopback_and_nothing_else_or_there_is_a_clear_refusal() -> None:
    before = socket.if_nameindex()
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=True)
    assert "['lo'" in done.stdout or "run it as root, or leave this peer out" in done.stdout
    assert "eth" not in done.stdout
    assert socket.if_nameindex() == before


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", "SGD", {"learning_rate": 0.1, "momentum": 0.9}),
        ("adam", "Adam", {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-2}),
        (
            "adamw",
            "AdamW",
            {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-2, "weight_decay": 0.1},
        ),
    ],
)
def test_keras_is_given_the_settings_of_the_bench(name: str, kind: str, settings: dict[str, float]) -> None:
    kinds = {each: lambda each=each, **given: (each, given) for each in ("SGD", "Adam", "AdamW")}
    assert optimizer_of(SimpleNamespace(optimizers=SimpleNamespace(**kinds)), name) == (kind, settings)


def test_what_moved_and_was_read_passes() -> None:
    start, held = arrays(0.0, 0.0), arrays(1.0, 2.0)
    check(start, held, [held])
    check(start, held, [arrays(1.0, 9.0), arrays(9.0, 2.0)])  # each tensor was read last by another worker


@pytest.mark.parametrize(
    ("held", "read", "words"),
    [
        ((1.0, np.nan), (1.0, np.nan), "tensor 1 of tensorflow is not finite"),
        ((1.0, 0.0), (1.0, 0.0), "tensor 1 of tensorflow never moved"),
        ((1.0, 2.0), (1.0, 9.0), "no worker of tensorflow has read tensor 1"),
    ],
)
def test_what_is_no_exchange_is_refused(held: tuple[float, ...], read: tuple[float, ...], words: str) -> None:
    with pytest.raises(WrongResultError, match=words):
        check(arrays(0.0, 0.0), arrays(*held), [arrays(*read)])


def test_a_step_that_takes_too_long_is_named() -> None:
    with pytest.raises(DeadlineError, match=r"step 3 was not over after 0.05 s"), within(0.05, "step 3"):
        time.sleep(10)
    with within(0.05, "step 4"):
        pass
    time.sleep(0.1)


def test_where_it_is_not_installed_one_line_says_so() -> None:
    assert left_out(PEERS["tensorflow"]) == (
        "tensorflow is left out: tensorflow is not installed; `pip install 'tensorflow-cpu==2.21.*'` does it"
    )


def test_the_table_says_that_it_is_not_compared_and_why() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(exchange_table([row_of("tensorflow", None)]))
    shown = console.export_text()
    assert "n/a" in shown
    assert "tensorflow applies each worker's gradient by itself, as many updates a step as workers" in shown


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_beside_tensorflow(tmp_path: Path, optimizer: str) -> None:
    pytest.importorskip("tensorflow")
    path = tmp_path / "rows.json"
    small = ("--params", "20K", "--steps", "3", "--warmup", "2", "--rounds", "2", "--optimizer", optimizer)
    arguments = ["exchange", *small, "--peer", "tensorflow", "--json", str(path)]
    result = CliRunner().invoke(bench_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(path.read_text())
    assert (row["peer"], row["peer_seconds"]["samples"], row["peer_difference"]) == ("tensorflow", 3, None)


def arrays(*values: float) -> list[np.ndarray]:
    return [np.full(3, value, np.float32) for value in values]


def row_of(peer: str, difference: float | None) -> ExchangeRow:
    seconds = Seconds.of([0.001])
    return ExchangeRow(
        bench="exchange",
        params=1000,
        workers=2,
        servers=1,
        transport="shm",
        policy="Sync()",
        optimizer="adamw",
        peer=peer,
        seconds=seconds,
        ratio=1.0,
        floor_share=0.5,
        step_seconds=[0.001],
        difference=0.0,
        steps_checked=1,
        peer_seconds=seconds,
        peer_step_seconds=[0.001],
        peer_difference=difference,
        floor_seconds=0.0005,
        bandwidth_bytes_per_second=1e10,
        server_memory=None,
    )
