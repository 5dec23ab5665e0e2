"""Who holds which shard, how a new replica is filled, and how an update comes to lie on all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.commit_log import CommitLog
from shoal.core.filling import Filling
from shoal.core.membership import Member, Server
from shoal.core.proposal import Proposals
from shoal.core.replica import Replica
from shoal.core.replicas import Replicas
from shoal.optim import SGD
from shoal.vocabulary import COORDINATOR, Contributor, PolicySpec, TableSpec, TensorSpec, Weighted, server_name
from shoal.wire import messages as m

RULE = SGD(lr=0.1)
SPEC = TableSpec((TensorSpec("t", (4,), "float32", 0),), RULE.name, (RULE.settings,), PolicySpec("sync"))


def server(index: int, host: str = "", pid: int | None = None) -> Server:
    return Server(index, f"address/{index}", 100 + index if pid is None else pid, 0, host or f"host {index}")


def known(*servers: Server) -> dict[int, Server]:
    return {item.index: item for item in servers}


# --- placement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shards", "copies", "chains"),
    [
        (1, 1, [[0]]),
        (3, 1, [[0], [1], [2]]),
        (1, 3, [[0, 1, 2]]),
        (2, 2, [[0, 2], [1, 3]]),
        (2, 3, [[0, 2, 4], [1, 3, 5]]),
    ],
)
def test_a_job_begins_with_every_shard_on_as_many_servers_as_it_wants(
    shards: int, copies: int, chains: list[list[int]]
) -> None:
    replicas = Replicas(shards, copies)
    assert replicas.chains == chains
    assert replicas.first == shards * copies and replicas.servers == list(range(shards * copies))
    assert replicas.primaries == list(range(shards))
    assert replicas.replicated is (copies > 1)
    for shard, chain in enumerate(chains):
        assert [replicas.shard(index) for index in chain] == [shard] * copies
        assert [replicas.leads(index) for index in chain] == [shard] + [-1] * (copies - 1)
    assert replicas.shard(replicas.first) == replicas.leads(replicas.first) == -1
    assert replicas.lost == []


def test_replicas_begin_on_different_hosts_where_there_are_any() -> None:
    replicas = Replicas(2, 2)
    # By their numbers alone both replicas of a shard would share a host.
    servers = known(server(0, "a"), server(1, "b"), server(2, "a"), server(3, "b"))
    replicas.arrange({index: servers[index] for index in (0, 1, 2)})
    assert replicas.chains == [[0, 2], [1, 3]], "one is not there yet"
    replicas.arrange(servers)
    assert replicas.chains == [[0, 3], [1, 2]]
    replicas.arrange(known(*(server(index, "a") for index in range(4))))
    assert replicas.chains == [[0, 3], [1, 2]], "it is done once"


def test_replicas_share_a_host_where_there_is_no_other() -> None:
    replicas = Replicas(2, 2)
    replicas.arrange(known(*(server(index, "a") for index in range(4))))
    assert sorted(replicas.servers) == [0, 1, 2, 3] and replicas.primaries == [0, 1]


def test_the_loss_of_a_primary_promotes_the_next_that_has_all_of_the_shard() -> None:
    replicas = Replicas(2, 3)
    replicas.filling.add(2)
    view = replicas.view
    assert replicas.remove(0) is True
    assert replicas.chains == [[4, 2], [1, 3, 5]], "2 has not all of it yet"
    assert replicas.view == view + 1 and replicas.gone == {0}
    assert replicas.leads(4) == 0 and replicas.shard(0) == -1


def test_the_loss_of_a_backup_leaves_the_primary_alone() -> None:
    replicas = Replicas(1, 3)
    assert replicas.remove(1) is True
    assert replicas.chains == [[0, 2]]


def test_a_shard_whose_last_whole_server_is_gone_is_lost() -> None:
    replicas = Replicas(2, 2)
    replicas.filling.add(2)
    assert replicas.remove(0) is False
    assert replicas.lost == [0]
    assert replicas.remove(3) is True and replicas.remove(1) is False
    assert replicas.lost == [0, 1]


def test_the_loss_of_a_spare_changes_no_view() -> None:
    replicas = Replicas(1, 2)
    replicas.creating[7] = 0
    assert replicas.remove(7) is True
    assert replicas.view == 1 and replicas.creating == {} and replicas.gone == {7}


def test_a_free_place_goes_to_the_shard_that_has_the_fewest_servers() -> None:
    replicas = Replicas(2, 3)
    servers = known(*(server(index) for index in range(6)))
    spare = server(9)
    assert replicas.vacancy(spare, servers.values()) == -1, "all places are taken"
    replicas.remove(2)
    assert replicas.vacancy(spare, servers.values()) == 0
    replicas.remove(3)
    replicas.remove(5)
    assert replicas.vacancy(spare, servers.values()) == 1
    replicas.creating |= {7: 1, 8: 1}
    assert replicas.vacancy(spare, servers.values()) == 0, "two are on their way to the other"
    replicas.creating[6] = 0
    assert replicas.vacancy(spare, servers.values()) == -1


def test_of_shards_that_lack_as_many_one_without_a_server_on_this_host_goes_first() -> None:
    replicas = Replicas(2, 2)
    servers = known(server(0, "a"), server(1, "b"))
    for index in (2, 3):
        replicas.remove(index)
    assert replicas.vacancy(server(9, "a"), servers.values()) == 1
    assert replicas.vacancy(server(9, "b"), servers.values()) == 0
    replicas.remove(1)
    replicas.chains[1] = [4]
    servers |= known(server(4, "a"))
    assert replicas.vacancy(server(9, "a"), servers.values()) == 0, "a second one on a host is better than none"


def test_one_process_never_holds_a_shard_twice() -> None:
    replicas = Replicas(2, 2)
    servers = known(server(0, "a", pid=5), server(1, "a", pid=6))
    for index in (2, 3):
        replicas.remove(index)
    spare = server(9, "a", pid=5)
    assert replicas.vacancy(spare, servers.values()) == 1
    replicas.creating[8] = 1
    assert replicas.vacancy(spare, (*servers.values(), server(8))) == -1
    assert replicas.vacancy(server(9, "b", pid=5), servers.values()) == 0, "the same number on another host"


def test_a_coming_replica_in_the_same_process_counts() -> None:
    replicas = Replicas(1, 3)
    replicas.remove(1)
    replicas.remove(2)
    replicas.creating[8] = 0
    servers = known(server(0), server(8, "a", pid=5))
    assert replicas.vacancy(server(9, "a", pid=5), servers.values()) == -1
    assert replicas.vacancy(server(9, "a", pid=6), servers.values()) == 0


def test_who_has_a_place_or_is_about_to_is_offered_no_other() -> None:
    replicas = Replicas(2, 2)
    servers = known(*(server(index) for index in range(4)))
    replicas.remove(3)
    assert replicas.vacancy(servers[0], servers.values()) == -1
    replicas.creating[9] = 0
    assert replicas.vacancy(server(9), servers.values()) == -1


def test_a_job_without_replicas_has_no_place_for_spares() -> None:
    replicas = Replicas(2, 1)
    replicas.remove(1)
    assert replicas.vacancy(server(9), known(server(0)).values()) == -1


def test_who_joins_is_a_backup_that_leads_only_once_it_is_whole() -> None:
    replicas = Replicas(1, 2)
    replicas.remove(1)
    replicas.creating[5] = 0
    view = replicas.view
    replicas.join(5)
    assert (replicas.chains, replicas.filling, replicas.creating) == ([[0, 5]], {5}, {})
    assert replicas.view == view + 1
    assert replicas.placed([server(5), server(0), server(9)]) == m.Placed(
        view + 1, ((0, 5),), (5,), ((5, "address/5"), (0, "address/0"))
    )
    assert replicas.whole(5) is True
    assert replicas.filling == set() and replicas.view == view + 2
    assert replicas.whole(5) is False and replicas.whole(0) is False, "no news"
    assert replicas.view == view + 2
    assert replicas.remove(0) is True and replicas.primaries == [5]


def test_of_several_that_are_filled_the_first_that_is_whole_leads_next() -> None:
    replicas = Replicas(1, 3)
    replicas.remove(1)
    replicas.remove(2)
    replicas.creating |= {5: 0, 6: 0}
    replicas.join(5)
    replicas.join(6)
    replicas.whole(6)
    assert replicas.chains == [[0, 6, 5]]
    replicas.remove(0)
    assert replicas.primaries == [6] and replicas.lost == []


# --- servers that are to leave ------------------------------------------------------------------


def test_a_server_that_is_to_leave_stays_until_another_has_all_that_it_has() -> None:
    replicas = Replicas(1, 2)
    servers = known(server(0), server(1))
    replicas.draining.add(1)
    assert replicas.drained() == []
    assert replicas.vacancy(server(5), servers.values()) == 0, "its place is as good as free"
    replicas.creating[5] = 0
    assert replicas.drained() == []
    replicas.join(5)
    assert replicas.drained() == [], "5 is filled first"
    replicas.whole(5)
    assert replicas.drained() == [1]


def test_a_spare_that_is_to_leave_may_go_at_once_and_is_given_no_place() -> None:
    replicas = Replicas(1, 2)
    replicas.remove(1)
    replicas.draining.add(7)
    assert replicas.drained() == [7]
    assert replicas.vacancy(server(7), known(server(0)).values()) == -1


def test_servers_of_several_shards_leave_as_each_is_replaced() -> None:
    replicas = Replicas(2, 2)
    replicas.draining |= {0, 3}
    replicas.creating |= {5: 1, 6: 0}
    for index in (5, 6):
        replicas.join(index)
    replicas.whole(5)
    assert replicas.drained() == [3]
    replicas.whole(6)
    assert replicas.drained() == [0, 3]


# --- placement, after the coordinator was lost --------------------------------------------------


def told(
    index: int, placed: m.Placed | None, whole: bool = True, spec: TableSpec | None = SPEC, version: int = 5
) -> m.Recovered:
    return m.Recovered(index, 2, version, version, spec, (), (), (), (), (), (), placed=placed, whole=whole)


def view(number: int, *chains: tuple[int, ...], filling: tuple[int, ...] = ()) -> m.Placed:
    return m.Placed(number, chains, filling, ())


def test_a_new_coordinator_takes_the_newest_view_of_those_that_told() -> None:
    replicas = Replicas(2, 2)
    newest = view(7, (2, 5), (1, 3))
    outdated = replicas.recover([told(2, view(4, (0, 2), (1, 3))), told(5, newest), told(1, newest), told(3, None)], 5)
    assert replicas.chains == [[2, 5], [1, 3]]
    assert replicas.view == 8 and replicas.filling == set() and replicas.lost == []
    assert outdated == []


def test_who_is_placed_and_did_not_tell_is_out_and_a_whole_one_leads() -> None:
    replicas = Replicas(2, 3)
    placed = view(7, (0, 2, 4), (1, 3, 5), filling=(2,))
    replicas.recover([told(2, placed, whole=False), told(4, placed), told(3, placed), told(5, placed)], 5)
    assert replicas.chains == [[4, 2], [3, 5]]
    assert replicas.filling == {2} and replicas.lost == []


def test_who_says_that_it_is_whole_is_even_if_the_view_does_not_know_yet() -> None:
    replicas = Replicas(1, 2)
    replicas.recover([told(1, view(7, (0, 1), filling=(1,)), whole=True)], 5)
    assert replicas.chains == [[1]] and replicas.filling == set() and replicas.lost == []


def test_a_shard_that_nobody_who_told_has_all_of_is_lost() -> None:
    replicas = Replicas(3, 2)
    placed = view(7, (0, 3), (1, 4), (2, 5))
    replicas.recover([told(0, placed), told(1, placed, whole=False)], 5)
    assert replicas.chains == [[0], [1], []]
    assert replicas.lost == [1, 2]


def test_who_has_no_place_in_the_newest_view_is_out_of_date() -> None:
    """It was taken for dead, and others went on without it."""
    replicas = Replicas(1, 2)
    outdated = replicas.recover([told(0, view(3, (0, 1))), told(1, view(4, (1, 6))), told(6, view(4, (1, 6)))], 5)
    assert outdated == [0]
    assert replicas.chains == [[1, 6]]


def test_who_has_not_applied_what_all_had_applied_is_out_of_date() -> None:
    """It was placed anew, and did not come to follow the log; nobody keeps the entries that it lacks."""
    replicas, placed = Replicas(2, 2), view(7, (0, 2), (1, 3))
    answers = [told(0, placed, version=4), told(2, placed), told(1, placed, version=9), told(3, placed, version=4)]
    assert replicas.recover(answers, 5) == [0, 3]
    assert replicas.chains == [[2], [1]] and replicas.lost == []


def test_a_spare_that_follows_no_log_has_no_say() -> None:
    replicas = Replicas(1, 2)
    outdated = replicas.recover([told(0, view(3, (0, 1))), told(1, None), told(9, view(99, (9, 8)), spec=None)], 5)
    assert outdated == [] and replicas.chains == [[0, 1]] and replicas.view == 4


def test_servers_that_were_told_of_no_view_have_the_places_they_began_with() -> None:
    replicas = Replicas(2, 1)
    assert replicas.recover([told(0, None), told(1, None)], 5) == []
    assert replicas.chains == [[0], [1]] and replicas.lost == []


# --- filling ------------------------------------------------------------------------------------


def filling(resend_ms: int = 100, target: int = 20) -> Filling:
    """Blocks of 10 bytes: two go at a time."""
    return Filling(Limits(resend_ms=resend_ms, fill_bytes_target=target), lambda block: 10)


def test_blocks_go_out_a_few_at_a_time_and_the_next_once_those_are_there() -> None:
    gifts = filling()
    gifts.expect([4], range(5), 0)
    assert gifts.due(0) == [(4, (0, 1), True)]
    assert gifts.due(1) == [], "they are under way"
    gifts.acknowledged(4, (), 2)  # it knows where the log is
    assert gifts.due(2) == []
    gifts.acknowledged(4, (0, 1), 3)
    assert gifts.due(3) == [(4, (2, 3), False)]
    gifts.acknowledged(4, (2,), 4)
    assert gifts.due(4) == [], "one of them is still under way"
    gifts.acknowledged(4, (3,), 5)
    assert gifts.due(5) == [(4, (4,), False)]
    gifts.acknowledged(4, (4,), 6)
    assert gifts.due(1000) == [], "it has all"


def test_what_is_not_acknowledged_goes_out_again_after_a_while() -> None:
    gifts = filling()
    gifts.expect([4], range(3), 0)
    assert gifts.due(10) == [(4, (0, 1), True)]
    assert gifts.due(109) == []
    assert gifts.due(110) == [(4, (0, 1), True)]
    assert gifts.due(309) == [], "it becomes patient"
    assert gifts.due(310) == [(4, (0, 1), True)]
    gifts.acknowledged(4, (1,), 320)  # which says that it follows, too
    assert gifts.due(419) == []
    assert gifts.due(420) == [(4, (0, 2), False)]


def test_a_large_block_goes_alone_and_not_never() -> None:
    gifts = Filling(Limits(fill_bytes_target=20), lambda block: 1000 if block == 1 else 10)
    gifts.expect([4], range(4), 0)
    assert gifts.due(0) == [(4, (0, 1), True)]
    gifts.acknowledged(4, (0,), 0)
    gifts.acknowledged(4, (1,), 0)
    assert gifts.due(0) == [(4, (2, 3), False)]
    alone = Filling(Limits(fill_bytes_target=20), lambda block: 1000)
    alone.expect([4], range(2), 0)
    assert alone.due(0) == [(4, (0,), True)]


def test_a_replica_of_a_shard_without_blocks_is_told_where_the_log_is() -> None:
    gifts = filling()
    gifts.expect([4], (), 0)
    assert gifts.due(0) == [(4, (), True)]
    assert gifts.due(99) == [] and gifts.due(100) == [(4, (), True)]
    gifts.acknowledged(4, (), 101)
    assert gifts.due(10_000) == []


def test_each_new_replica_is_filled_at_its_own_pace_and_who_is_gone_no_more() -> None:
    gifts = filling()
    gifts.expect([4], range(3), 0)
    gifts.due(0)
    gifts.acknowledged(4, (0, 1), 1)
    gifts.expect([4, 6], range(3), 2)
    assert gifts.due(2) == [(4, (2,), False), (6, (0, 1), True)], "what 4 has it is not given again"
    gifts.expect([6], range(3), 3)
    gifts.acknowledged(4, (2,), 4)  # late: it changes nothing
    assert gifts.due(500) == [(6, (0, 1), True)]


def test_what_was_under_way_when_a_connection_broke_goes_out_at_once() -> None:
    gifts = filling()
    gifts.expect([4], range(3), 0)
    gifts.due(0)
    gifts.again(4)
    assert gifts.due(1) == [(4, (0, 1), True)], "it may not have been told of the log"
    gifts.acknowledged(4, (), 2)
    gifts.again(4)
    assert gifts.due(3) == [(4, (0, 1), False)]
    gifts.again(9)  # nobody's
    assert gifts.due(4) == []


# --- proposals ----------------------------------------------------------------------------------

ONE, TWO = Contributor(0, 0, 3, 0), Contributor(1, 1, 3, 0)
WEIGHTS = (Weighted(ONE, 0.25), Weighted(TWO, 0.75))


def member(who: Contributor, *blocks: int) -> Member:
    made = Member(who.worker, who.incarnation, 0, 0, 0)
    made.ready = m.Ready(who, 1, (), (0.1,), blocks=blocks)
    return made


def proposals(shards: int = 2, copies: int = 2) -> Proposals:
    replicas = Replicas(shards, copies)
    return Proposals(4, CommitLog(4, shards, replicas.servers), replicas)


def begin(ours: Proposals, now: int = 0) -> list[k.Effect]:
    return ours.begin([member(ONE, 5, 6), member(TWO, 7, 0)], WEIGHTS, now)


def prepare(to: int, number: int, blocks: Sequence[int], lacking: tuple[int, ...]) -> k.Send:
    return k.Send(server_name(to), m.Prepare(4, number, WEIGHTS, tuple(blocks), lacking))


def hold(ours: Proposals, *servers: int) -> list[bool]:
    return [ours.held(m.Held(server, 4, ours.number)) for server in servers]


def test_an_update_is_prepared_by_each_shards_primary_with_its_own_counts_of_blocks() -> None:
    ours = proposals()
    assert ours.free
    assert begin(ours) == [prepare(0, 1, (5, 7), (0, 2)), prepare(1, 1, (6, 0), (1, 3))]
    assert not ours.free
    assert ours.current is not None and ours.current.workers == (0, 1) and ours.current.weights == WEIGHTS


def test_a_proposal_names_all_whom_it_settles_and_prepares_what_can_be_used() -> None:
    ours = proposals(shards=1)
    void = member(TWO, 7)
    sent = ours.begin([member(ONE, 5), void], WEIGHTS[:1], 0)
    assert sent == [k.Send("server/0", m.Prepare(4, 1, WEIGHTS[:1], (5,), (0, 1)))]
    assert ours.current is not None and ours.current.workers == (0, 1)


def test_a_proposal_is_held_once_the_last_replica_of_the_last_shard_says_so() -> None:
    ours = proposals()
    begin(ours)
    assert hold(ours, 3, 0, 0, 2, 3) == [False] * 5
    assert hold(ours, 1) == [True]
    ours.drop()
    assert ours.free
    assert hold(ours, 1) == [False], "there is none any more"


def test_words_on_another_proposal_do_not_count() -> None:
    ours = proposals(shards=1)
    begin_one = [member(ONE, 5)]
    ours.begin(begin_one, WEIGHTS[:1], 0)
    assert hold(ours, 0) == [False]
    ours.drop()
    ours.begin(begin_one, WEIGHTS[:1], 0)
    assert ours.number == 2
    assert ours.held(m.Held(1, 4, 1)) is False, "of the one before"
    assert ours.held(m.Held(1, 3, 2)) is False, "of the coordinator before"
    assert hold(ours, 1, 0) == [False, True], "what 0 said of the first does not count for the second"


def test_only_those_that_are_missing_are_prepared_again_and_not_too_soon() -> None:
    ours = proposals()
    assert ours.resend(1000, 500) == []
    begin(ours, 1000)
    assert ours.resend(1499, 500) == []
    assert ours.resend(1500, 500) == [prepare(0, 1, (5, 7), (0, 2)), prepare(1, 1, (6, 0), (1, 3))]
    assert ours.resend(1999, 500) == []
    hold(ours, 0, 1, 3)
    assert ours.resend(2000, 500) == [prepare(0, 1, (5, 7), (2,))], "the primary forwards it, though it holds it"
    ours.drop()
    assert ours.resend(9000, 500) == []


def test_no_proposal_begins_before_every_server_has_applied_the_last_update() -> None:
    ours = proposals(shards=1)
    log = ours.log
    log.append(m.Commit(4, 1, "update", WEIGHTS, (0.1,), (), (), ()), 0)
    assert not ours.free
    log.applied(0, 1, 0)
    assert not ours.free, "the memory of the backup is in use"
    log.applied(1, 1, 0)
    assert ours.free
    log.append(log.cut(), 0)
    assert ours.free, "a cut needs no memory"


def test_a_server_that_is_gone_is_not_waited_for_by_the_log() -> None:
    ours = proposals(shards=1)
    ours.log.append(m.Commit(4, 1, "update", WEIGHTS, (0.1,), (), (), ()), 0)
    ours.log.applied(0, 1, 0)
    ours.log.leave(1)
    assert ours.free and ours.log.stable == 1
    assert ours.log.append(ours.log.cut(), 0) == [k.Send("server/0", ours.log.entries[2].commit)]


def test_a_server_that_comes_follows_from_the_first_entry_that_is_not_applied_everywhere() -> None:
    ours = proposals(shards=1)
    log = ours.log
    for _ in range(2):
        log.append(log.cut(), 0)
    log.applied(0, 2, 0)
    log.applied(1, 1, 0)
    assert log.follow(7) == [k.Send("server/7", log.entries[2].commit)]
    log.applied(1, 2, 0)
    assert log.stable == 1, "it is waited for"
    log.applied(7, 2, 0)
    assert log.stable == 2
    assert log.append(log.cut(), 0) == [k.Send(server_name(index), log.entries[3].commit) for index in (0, 1, 7)]


# --- contributions that are held where they lie ---------------------------------------------------


def primary(*near: int, whole: bool = True) -> tuple[Replica, m.Prepare]:
    """Server 0 of the chain 0, 1, 2 of a shard, which can share memory with these; asked to have one update held."""
    replica = Replica(0, Limits())
    replica.begin(m.Create(1, SPEC, 0, 1, replicated=True), (0,))
    for other in (1, 2):
        replica.regained(server_name(other), near=other in near)
    prepare = m.Prepare(1, 1, (Weighted(Contributor(5, 1, 1, 0), 1.0, whole),), (1,), (0, 1, 2))
    replica.prepare(prepare)
    return replica, prepare


def test_what_all_replicas_can_read_is_held_where_it_lies() -> None:
    replica, prepare = primary(1, 2)
    assert replica.due(lambda item, count: True) == prepare and replica.lie_near(prepare)
    assert replica.combined(prepare.contributors, in_place=True) == [
        k.Send(COORDINATOR, m.Held(0, 1, 1)),
        *(k.Forward(server, 1, 1, prepare.contributors, in_place=True) for server in (1, 2)),
    ]
    backup = Replica(1, Limits(), leads=False)
    word = m.Forward(0, 1, 1, prepare.contributors, 0, (), in_place=True)
    assert backup.forwarded(word) == backup.forwarded(word) == [k.Send(COORDINATOR, m.Held(1, 1, 1))]
    assert backup.in_place and backup.sum == prepare.contributors
    backup.applied()
    assert not backup.in_place and backup.forwarded(word) == []


@pytest.mark.parametrize(("near", "whole"), [((1,), True), ((), True), ((1, 2), False)])
def test_what_some_replica_cannot_read_is_combined(near: tuple[int, ...], whole: bool) -> None:
    replica, prepare = primary(*near, whole=whole)
    assert not replica.lie_near(prepare)
    assert k.Forward(2, 1, 1, prepare.contributors) in replica.combined(prepare.contributors)


def test_what_was_held_in_place_is_combined_once_a_replica_comes_back_from_farther_away() -> None:
    replica, prepare = primary(1, 2)
    replica.combined(prepare.contributors, in_place=True)
    again = [k.Forward(1, 1, 1, prepare.contributors, in_place=True)]
    assert replica.regained(server_name(1), near=True) == again
    assert replica.regained("worker/2", near=False) == [] and replica.in_place
    assert replica.regained(server_name(2), near=False) == []
    assert replica.due(lambda item, count: True) == prepare and not replica.lie_near(prepare)
    assert k.Forward(1, 1, 1, prepare.contributors) in replica.combined(prepare.contributors)
