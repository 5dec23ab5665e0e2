"""Sync with the same workers gives the same bits, on any number of servers, whatever carries the frames."""

from __future__ import annotations

from functools import cache

import pytest

from shoal.core.shared import lay_out_shared
from shoal.optim import LAMB, SGD, AdamW, Rule
from shoal.placement import owned
from shoal.vocabulary import TableSpec

from .cluster import BAD_NETWORK, SLOW_NETWORK, Observer, Setting, table, train

WORKERS, CLOCKS = 3, 8

RULES: dict[str, tuple[Rule, ...]] = {
    "sgd": (SGD(lr=0.1, momentum=0.9, nesterov=True, clip_norm=1.0), SGD(lr=0.1, momentum=0.5, clip_norm=1.0)),
    "adamw": (AdamW(lr=0.1, weight_decay=0.1, clip_norm=2.0), AdamW(lr=0.1, weight_decay=0.0, clip_norm=2.0)),
    "lamb": (LAMB(lr=0.1, weight_decay=0.1, clip_norm=1.0),),
    "adamw of packed gradients": (AdamW(lr=0.1, clip_norm=2.0),),
    "adamw of a part of the gradients": (AdamW(lr=0.1, clip_norm=2.0),),
    "adamw of narrow products": (AdamW(lr=0.1, clip_norm=2.0),),
    "adamw, changes packed": (AdamW(lr=0.1, clip_norm=2.0),),
}
PUSHES = {  # by tensor; "": as it is
    "adamw of packed gradients": ("2bit", "", "sign", "int8", "int4"),
    "adamw of narrow products": ("powersgd2", "powersgd1", "powersgd1", "powersgd8", "powersgd4"),
    "adamw of a part of the gradients": ("topk", "randomk", "", "topk", "randomk"),
}
PULLS = {"adamw, changes packed": ("int8", "2bit", "", "", "bfloat16")}

LATE = {  # the others' contributions are combined while the last one is awaited
    "2 servers, tcp, the last worker late": Setting(servers=2, scheme="tcp", late_s=0.04),
    "1 server, shared memory, the last worker late": Setting(scheme="shm", late_s=0.04),
}

LONG = {  # contributions are offered: servers say themselves what they have staged
    "2 servers, tcp, long links": Setting(servers=2, scheme="tcp", long=True),
    "3 servers, tcp, long links, bad network": Setting(servers=3, scheme="tcp", long=True, faults=BAD_NETWORK, seed=6),
}

PLACES = {
    "2 servers": Setting(servers=2),
    "3 servers, tcp": Setting(servers=3, scheme="tcp"),
    "1 server, tcp, bad network": Setting(servers=1, scheme="tcp", faults=BAD_NETWORK, seed=1),
    "2 servers, slow network": Setting(servers=2, faults=SLOW_NETWORK, seed=2),
    "3 servers, tcp, bad network": Setting(servers=3, scheme="tcp", faults=BAD_NETWORK, seed=3),
    "1 server, shared memory": Setting(servers=1, scheme="shm"),
    "3 servers, shared memory": Setting(servers=3, scheme="shm"),
    "2 servers, shared memory, bad network": Setting(servers=2, scheme="shm", faults=BAD_NETWORK, seed=5),
    "3 servers, bad network": Setting(servers=3, faults=BAD_NETWORK, seed=4),
    **LATE,
    **LONG,
    "2 servers with 2 replicas": Setting(servers=2, replicas=2),
    "2 servers with 3 replicas, bad network": Setting(2, "tcp", replicas=3, faults=BAD_NETWORK, seed=7),
    "2 servers with 2 replicas, shared memory": Setting(servers=2, replicas=2, scheme="shm"),
    "1 server with 2 replicas, shared memory, the last worker late": Setting(replicas=2, scheme="shm", late_s=0.04),
}


@cache
def reference(rule: str, paged: bool = False) -> bytes:
    return train(spec(rule, paged), WORKERS, CLOCKS, Setting())


def spec(rule: str, paged: bool) -> TableSpec:
    return table(RULES[rule], paged=paged, pushes=PUSHES.get(rule, ("",) * 5), pulls=PULLS.get(rule, ("",) * 5))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rule", RULES)
def test_place_and_network_do_not_show_in_the_parameters(rule: str, place: str) -> None:
    paged = PLACES[place].scheme == "shm"
    assert train(spec(rule, paged), WORKERS, CLOCKS, PLACES[place]) == reference(rule, paged)


@pytest.mark.parametrize("rule", [*PUSHES, *PULLS])
def test_what_codecs_lose_shows(rule: str) -> None:
    assert reference(rule) != train(table(RULES[rule]), WORKERS, CLOCKS, Setting())


@pytest.mark.parametrize("place", LATE)
def test_what_is_there_is_combined_while_the_last_worker_is_awaited(place: str) -> None:
    observer = Observer()
    train(table(RULES["sgd"], paged=True), WORKERS, CLOCKS, LATE[place], observer)
    found = {(hint.contributors[0].contributor.clock, len(hint.contributors)) for hint in observer.foreseen}
    assert {length for _, length in found} == {WORKERS - 1}
    committed = {commit.contributors[: WORKERS - 1] for commit in observer.updates}
    right = sum(hint.contributors in committed for hint in observer.foreseen)
    assert right >= LATE[place].servers, f"weights were guessed right {right} times in {len(observer.foreseen)}"


def test_over_long_links_contributions_are_offered() -> None:
    observer = Observer()
    train(table(RULES["sgd"]), WORKERS, CLOCKS, LONG["2 servers, tcp, long links"], observer)
    committed = {item.contributor for commit in observer.updates for item in commit.contributors}
    assert observer.awaited == committed


def test_every_server_of_these_jobs_holds_several_blocks() -> None:
    for spec in (table(RULES["sgd"]), table(RULES["sgd"], paged=True)):
        for servers in (1, 2, 3):
            assert all(len(owned(spec, shard, servers)) > 2 for shard in range(servers))


def test_tables_of_whole_pages_are_shared_whatever_the_number_of_servers() -> None:
    for servers in (1, 2, 3):
        assert lay_out_shared(table(RULES["sgd"], paged=True), servers) is not None


def test_other_gradients_give_other_bits() -> None:
    """The comparison above can fail: one clock less shows."""
    assert train(table(RULES["sgd"]), WORKERS, CLOCKS - 1, Setting()) != reference("sgd")
