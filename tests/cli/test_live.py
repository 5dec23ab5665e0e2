"""The live view: figures worked out of statuses, drawn on a terminal, printed as lines elsewhere."""

import io

import pytest
from rich.console import Console

from shoal.cli.live import Lines, Progress, Screen, in_bytes, in_minutes, sparkline, view
from shoal.wire.messages import MemberStatus, Status


def worker(rank: int, **figures: float) -> MemberStatus:
    return MemberStatus(
        f"worker/{rank}", "busy", 10, 9, staleness=rank, received=2_000_000, sent=1_000_000, figures=figures
    )


def job(committed: int, *members: MemberStatus) -> Status:
    return Status("job", "running", "", "sync", 1, 9, members, 0, committed, 1200)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_counts_samples_and_means_losses() -> None:
    clock = Clock()
    progress = Progress(batch_size=12, done_iters=50, clock=clock)
    assert (progress.iteration, progress.iterations, progress.left_seconds) == (50, 0, None)
    progress.take(job(0))
    clock.now += 60  # starting up is not training
    progress.take(job(120, worker(0, loss=2.0, tokens_per_second=700), worker(1, loss=3.0, tokens_per_second=500)))
    clock.now += 10
    progress.take(job(360, worker(0, loss=1.0, val_loss=1.5), worker(1)))
    assert (progress.iteration, progress.iterations) == (80, 150)
    assert progress.losses == [2.5, 2.0]
    assert progress.elapsed_seconds == 10 and progress.left_seconds == pytest.approx(35)  # 24 samples/s, 840 left
    shown = dict(progress.summary())
    assert shown["validation"] == "1.500" and shown["staleness"] == "1"
    assert (shown["pushed"], shown["pulled"]) == ("2.0 MB", "4.0 MB")
    progress.take(job(1200, worker(0)))
    progress.take(job(1200))
    shown = dict(progress.summary())
    assert (shown["pushed"], shown["loss"], shown["tokens/s"]) == ("2.0 MB", "2.000", "0")  # they have left


def test_a_long_run_keeps_a_bounded_course() -> None:
    progress = Progress(batch_size=1)
    for index in range(10_000):
        progress.take(job(index, worker(0, loss=float(index))))
    assert len(progress.losses) <= 4097 and progress.losses[-1] >= 9_000


def test_lines_come_as_they_are_and_progress_now_and_then() -> None:
    clock, out = Clock(), io.StringIO()
    with Lines(Progress(batch_size=12, clock=clock), Console(file=out)) as shown:
        shown.line("worker 0", "iteration 0: train loss 4.2 [literal]")
        for _ in range(20):
            clock.now += 1
            shown.status(job(120, worker(0, loss=2.0)))
    first, *progress = out.getvalue().splitlines()
    assert first == "[worker 0] iteration 0: train loss 4.2 [literal]"
    assert len(progress) == 4 and progress[0].startswith("[shoal] iteration 10/100: loss 2.000, ")


def test_a_terminal_gets_a_table_with_every_member() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110, color_system=None)
    shown = view("GPT on a text", 12, console=console)
    assert isinstance(shown, Screen)
    with shown:
        shown.line("worker 1", "a line of its own")
        shown.status(job(600, worker(0, loss=2.0, tokens_per_second=1234), worker(1, loss=1.0)))
    text = out.getvalue()
    for expected in ("a line of its own", "GPT on a text", "iteration 50/100", "1.500", "1,234", "worker/1", "sync"):
        assert expected in text


def test_a_file_gets_lines() -> None:
    assert isinstance(view("GPT", 12, console=Console(file=io.StringIO())), Lines)


def test_a_sparkline_falls_with_its_values() -> None:
    assert sparkline([]) == "" and sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([4, 4, 1, 1], columns=2) == "█▁"


def test_units() -> None:
    assert [in_bytes(count) for count in (0, 999, 12_345_678, 3.2e12)] == ["0 B", "999 B", "12.3 MB", "3.2 TB"]
    assert [in_minutes(seconds) for seconds in (0, 59.6, 75, 3675)] == ["0:00", "1:00", "1:15", "1:01:15"]
