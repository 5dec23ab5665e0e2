"""How old a contribution is follows from the log, also for a coordinator that takes over, and stays within bounds."""

from __future__ import annotations

from shoal.core.accounts import Accounts
from shoal.core.ages import AGE_MAX, Ages
from shoal.policy import Async
from shoal.vocabulary import Contributor, Weighted
from shoal.wire import messages as m

from .play import Play, small_table


def update(seq: int, age: int = 0) -> m.Commit:
    who = Contributor(0, 0, seq, 0)
    return m.Commit(1, seq, "update", (Weighted(who, 1.0),), closes=((0, 0, seq),), ages=(age,))


def test_only_updates_make_a_contribution_older() -> None:
    ages = Ages()
    for commit in (update(1), m.Commit(1, 2, "cut"), update(3), m.Commit(1, 4, "cut"), update(5)):
        ages.add(commit)
    assert [ages.of(version) for version in range(6)] == [3, 2, 2, 1, 1, 0]


def test_who_takes_over_counts_as_whoever_coordinated_before() -> None:
    told = Accounts()
    for seq in range(1, 3 * AGE_MAX):
        told.add(update(seq, age=seq % 3))
    recovered = m.Recovered(
        0, 2, 0, 0, None, (), (), (), (), (), (),
        updates=told.updates, ages=tuple(told.ages.counted.items()), dropped=told.ages.dropped,
    )  # fmt: skip
    taken_over = Accounts.of(recovered)
    for version in (0, AGE_MAX, 2 * AGE_MAX, 3 * AGE_MAX - 2):
        assert taken_over.ages.of(version) == told.ages.of(version)
    assert taken_over.ages.counted == told.ages.counted
    assert told.ages.of(0) == AGE_MAX, "older ones are not told apart"
    assert len(told.ages.updates) <= 2 * AGE_MAX and len(told.updates) == AGE_MAX


def test_status_shows_how_old_contributions_were() -> None:
    play = Play(workers=2, servers=1, spec=small_table(Async()))
    play.form()
    for worker in (0, 0, 0, 1):
        play.push(worker)
        play.deliver()
    assert play.status().ages == ((0, 3), (3, 1)), "worker 1 computed on the initial parameters"
