"""The machines together, one message at a time: each transcript in transcripts/ reads as the story it tells.

After a change that is meant, SHOAL_REWRITE=1 writes the transcripts anew; read the difference before you keep it.
"""

from __future__ import annotations

from shoal.core import session as s
from shoal.core.shard import Open
from shoal.policy import Async, Bounded, Decoupled, Sync
from shoal.vocabulary import Dataset
from shoal.wire import messages as m

from .play import Play, small_table


def test_a_job_forms_and_takes_a_step() -> None:
    play = Play()
    play.form("servers register, workers join and declare, worker 0 seeds")
    play.say("clock 1: both push; the commit follows the second Ready")
    play.push(0)
    play.deliver()
    play.push(1, samples=3)
    play.deliver()
    play.check("forming_and_a_step")


def test_what_is_lost_is_asked_for_again() -> None:
    play = Play(workers=1, servers=1)
    play.form()
    play.say("the frame with the gradient is lost, then its acknowledgement, then arrives twice")
    play.push(0)
    play.lose(m.Stage)
    play.wait(500)
    play.deliver(m.Stage)
    play.lose(m.Staged)
    play.wait(1000)
    play.again(m.Stage)
    play.deliver(m.Stage, m.Staged)
    play.say("Ready is lost, then the commit, then the word of release, then the parameters")
    play.lose(m.Ready)
    play.wait(500)
    play.deliver(m.Ready)
    play.lose(m.Commit)
    play.lose(m.Released)
    play.wait(1000)
    play.deliver(m.Commit, m.Ready, m.Applied, m.Released)
    play.lose(m.Parameters)
    play.wait(500)
    play.deliver()
    play.check("lost_frames")


def test_clipping_collects_norms_from_every_server_before_anything_changes() -> None:
    play = Play(workers=1, spec=small_table(clip_norm=1.0))
    play.form()
    play.say("the combined gradient has norm sqrt(2): both servers scale by the same factor")
    play.push(0)
    play.deliver(m.Stage, m.Staged, m.Ready, m.Commit)
    play.say("the norms of one server are lost and repeated")
    play.lose(m.Norms, to="coordinator")
    play.wait(500)
    play.deliver()
    play.check("clipping")


def test_a_worker_that_dies_in_its_clock_is_fenced() -> None:
    play = Play(workers=3, servers=1)
    play.form()
    play.say("worker 2 has staged everything and dies before it is ready; the others wait for it")
    play.push(2)
    play.deliver(m.Stage)
    late = m.Stage(play.sessions["worker/2"]._identity(), (0, 1))
    play.kill(2)
    play.push(0)
    play.push(1)
    play.deliver()
    play.say("grace_ms later its incarnation is fenced and the clock is committed without it")
    play.wait(300)
    play.deliver()
    play.say("what a dead incarnation sends late changes nothing")
    play.flight.append(("worker/2", "server/0", late))
    play.gone.discard("worker/2")
    play.flight.append(("worker/2", "coordinator", m.Ready(late.contributor, 1, (), (0.1,))))
    play.deliver()
    play.check("death_in_a_clock")


def test_a_worker_that_was_ready_when_it_died_still_counts() -> None:
    play = Play(servers=1)
    play.form()
    play.push(1)
    play.deliver()
    play.say("worker 1 is ready and dies; its contribution is complete, but it is not a member any more")
    play.kill(1)
    play.wait(300)
    play.push(0)
    play.deliver()
    play.check("death_after_ready")


def test_a_worker_joins_a_job_that_runs() -> None:
    play = Play(workers=1, servers=1)
    play.form()
    play.push(0)
    play.deliver()
    play.say("worker 1 joins at clock 2: a cut gives it the parameters, and the clock waits for it")
    play.enter(1)
    play.push(0)
    play.deliver()
    play.say("both are in the commit of clock 2")
    play.push(1)
    play.deliver()
    play.check("late_join")


def test_a_second_life_fences_the_first() -> None:
    play = Play(workers=1, servers=1)
    play.form()
    play.push(0)
    play.deliver(m.Stage)
    play.say("worker 0 is started again before anyone noticed its death")
    play.kill(0)
    play.enter(0, nonce=77)
    play.say("its new life goes on at the same clock")
    play.push(0)
    play.deliver()
    play.check("second_life")


def test_a_grace_is_given_to_the_last() -> None:
    play = Play(workers=3, servers=1, spec=small_table(Sync(quorum=0.6, grace=0.2)))
    play.form()
    play.say("two of three are ready: the third has 200 ms")
    play.push(0)
    play.wait(150)
    play.push(2)
    play.deliver()
    play.wait(100)
    play.deliver()
    play.say("it comes in time, and nobody waits for the rest of the grace")
    play.push(1)
    play.deliver()
    play.say("in clock 2 it does not")
    play.push(0)
    play.push(2)
    play.deliver()
    play.wait(200)
    play.deliver()
    play.check("grace")


def test_without_a_clock_who_comes_late_is_in_the_next_commit() -> None:
    play = Play(workers=3, servers=1, spec=small_table(Decoupled(quorum=2, grace=0.1)))
    play.form()
    play.say("two are a quorum; the grace ends without the third")
    play.push(0, samples=3)
    play.push(2)
    play.deliver()
    play.wait(100)
    play.deliver()
    play.say("what the third has for its clock 1 goes with the clock 2 of another")
    play.push(1)
    play.deliver()
    play.push(2)
    play.deliver()
    play.wait(100)
    play.deliver()
    play.check("decoupled")


def test_a_quorum_goes_on_without_the_last() -> None:
    play = Play(workers=3, servers=1, spec=small_table(Sync(quorum=0.6)))
    play.form()
    play.say("two of three are a quorum of 0.6")
    play.push(0)
    play.push(2)
    play.deliver()
    play.say("worker 1 comes too late for clock 1 and is sent on to clock 2")
    play.push(1)
    play.deliver()
    play.check("quorum")


def test_a_snapshot_of_a_job_that_has_not_begun_is_refused_for_good() -> None:
    play = Play(workers=2, servers=1)
    for index, (node, shard) in enumerate(play.shards.items()):
        play._perform(node, shard.step(Open(f"address/{index}", 100 + index), play.now))
    play.join(0)
    play.lines.clear()
    play.do(0, s.Snapshot("/early"))
    early = play.flight[-1]
    play.deliver()
    assert play.lines[-1] == (
        "worker/0                  * Snapshotted(path=/early, version=0, error=the job has not begun: "
        "1 of 2 workers have joined, and not worker 1)"
    )
    play.join(1)
    for worker in range(2):
        play.do(worker, s.Declare(play.spec))
    play.deliver()
    play.do(1, s.Await())
    play.push(0)
    play.deliver()
    play.lines.clear()
    play.flight.append(early)  # a copy that was on its way for long
    play.deliver()
    assert not [line for line in play.lines if "Save" in line], "it was refused, and is written now"


def test_bounded_lets_nobody_run_ahead() -> None:
    play = Play(workers=2, servers=1, spec=small_table(Bounded(1)))
    play.form()
    play.say("worker 0 may finish clock 1, but not go on from clock 2 while worker 1 is at clock 1")
    play.push(0)
    play.deliver()
    play.push(0)
    play.deliver()
    play.say("worker 1 finishes clock 1: both go on, with every contribution up to there")
    play.push(1)
    play.deliver()
    play.check("bounded")


def test_a_policy_takes_over_once_all_are_at_rest() -> None:
    play = Play(workers=2, servers=1)
    play.form()
    play.say("worker 0 is ready for clock 1 when somebody sets another policy: worker 1 finishes it first")
    play.push(0)
    play.deliver()
    play.ask(m.SetPolicy(Async().spec))
    play.push(1)
    play.deliver()
    play.say("from here on nobody waits for anybody")
    play.push(0)
    play.deliver()
    play.push(0)
    play.deliver()
    play.say("back to Sync(): worker 0 waits, and both go on at one clock, with nothing dropped")
    play.ask(m.SetPolicy(Sync().spec))
    play.push(0)
    play.deliver()
    play.push(1)
    play.deliver()
    play.say("it is in force: asking again changes nothing")
    play.ask(m.SetPolicy(Sync().spec))
    play.deliver()
    play.check("policy")


def test_a_version_that_is_gone_is_cut_anew() -> None:
    play = Play(workers=2, servers=2, spec=small_table(Bounded(5)))
    play.form()
    play.say("the parameters of worker 0 from server 1 are lost; before it asks again, worker 1 commits")
    play.push(0)
    play.deliver(m.Stage, m.Staged, m.Ready, m.Commit, m.Applied)
    play.flight = [item for item in play.flight if item[0] != "server/1"]
    play.deliver()
    play.push(1)
    play.deliver()
    play.say("server 1 has moved on: a new cut gives worker 0 one version, complete")
    play.wait(500)
    play.deliver()
    play.check("moved")


def test_samples_of_a_dead_worker_are_leased_again() -> None:
    play = Play(workers=2, servers=1)
    play.form()
    dataset = Dataset(size=6, batch=2, seed=0)
    play.say("both take two samples; worker 1 dies with its lease")
    for worker in range(2):
        play.do(worker, s.Take(dataset, 0))
    play.deliver()
    play.kill(1)
    play.push(0, samples=2, leases=(1,))
    play.deliver()
    play.wait(300)
    play.deliver()
    play.say("its samples come again; at the end of the data epoch the answer is None")
    for lease in (3, 4):
        play.do(0, s.Take(dataset, 0))
        play.deliver()
        play.push(0, samples=2, leases=(lease,))
        play.deliver()
    play.do(0, s.Take(dataset, 0))
    play.deliver()
    play.check("leases")


def test_a_snapshot_is_an_entry_of_the_log() -> None:
    play = Play(workers=1)
    play.form()
    play.do(0, s.Snapshot("/snap"))
    play.deliver()
    play.check("snapshot")


def test_leaving_is_not_dying() -> None:
    play = Play(servers=1)
    play.form()
    play.push(0)
    play.deliver()
    play.say("worker 0 waits for worker 1, which leaves: the clock is committed at once")
    play.do(1, s.Leave())
    play.deliver()
    play.check("leaving")


def test_who_has_no_parameters_yet_loses_nothing_with_its_coordinator() -> None:
    play = Play()
    play.form()
    play.kill(1)
    play.wait(300)
    play.deliver()
    play.say("worker 1 joins anew; before it declares, the coordinator is killed, and the next one goes on without it")
    play.join(1, nonce=5)
    play.succeed()
    play.deliver()
    play.push(0)
    play.deliver()
    play.say("it declares: it is known by what the coordinator before has called it, and begins")
    play.do(1, s.Declare(play.spec))
    play.deliver()
    play.do(1, s.Await())
    play.deliver()
    play.check("joined_before")
