"""What a person sees while a job trains: a live view on a terminal, a line every few seconds elsewhere.

Both are fed by the launcher, on one thread: `line` with what the processes print, `status` with the state of the
job. What they show is worked out by `Progress`, which knows no terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoal.launch.printer import Printer
from shoal.wire.messages import MemberStatus, Status

PLAIN_SECONDS = 5.0  # between two lines of progress where there is no terminal
LOSSES_KEPT = 4096  # twice a second for half an hour; then every second one goes
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 40


class View(AbstractContextManager["View"], Protocol):
    """Shows a job from the moment it is entered until it is left."""

    def line(self, source: str, text: str) -> None: ...

    def status(self, status: Status) -> None: ...


def view(title: str, batch_size: int, *, done_iters: int = 0, console: Console | None = None) -> View:
    """The view that suits standard output. done_iters: iterations before this job's first."""
    console = console or Console(highlight=False)
    progress = Progress(batch_size, done_iters)
    return Screen(title, progress, console) if console.is_terminal else Lines(progress, console)


@dataclass
class Progress:
    """What the statuses of a job say about its training.

    An iteration is batch_size samples committed, whoever computed them. Losses: the mean of what the workers last
    reported. Pushed and pulled: bytes the workers sent and received. What a worker that has left had reported and
    moved still counts; its speed does not.
    """

    batch_size: int
    done_iters: int = 0
    clock: Callable[[], float] = time.monotonic
    latest: Status | None = None
    losses: list[float] = field(default_factory=list)
    started: float | None = None  # when the first sample was seen committed
    samples_at_start: int = 0
    moved: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # a worker's life -> sent, received
    reported: dict[str, dict[str, float]] = field(default_factory=dict)  # worker -> its last figures

    def take(self, status: Status) -> None:
        self.latest = status
        for member in self.workers:
            self.moved[member.name, member.incarnation] = (member.sent, member.received)
            self.reported.setdefault(member.name, {}).update(member.figures)
        if self.started is None and status.samples_committed:
            self.started, self.samples_at_start = self.clock(), status.samples_committed
        if self.workers and (loss := self.mean("loss")) is not None:
            self.losses.append(loss)
            if len(self.losses) > LOSSES_KEPT:
                self.losses = self.losses[::2]

    @property
    def workers(self) -> list[MemberStatus]:
        members = self.latest.members if self.latest else ()
        return [member for member in members if member.name.startswith("worker/")]

    @property
    def iteration(self) -> int:
        return self.done_iters + (self.latest.samples_committed // self.batch_size if self.latest else 0)

    @property
    def iterations(self) -> int:
        """How many there will be; 0 while nobody has said."""
        return self.done_iters + self.latest.samples // self.batch_size if self.latest and self.latest.samples else 0

    @property
    def elapsed_seconds(self) -> float:
        return 0.0 if self.started is None else self.clock() - self.started

    @property
    def left_seconds(self) -> float | None:
        """At the mean speed until now; None while there is none."""
        if self.latest is None or self.latest.samples_committed <= self.samples_at_start:
            return None
        speed = (self.latest.samples_committed - self.samples_at_start) / max(self.elapsed_seconds, 1e-9)
        return (self.latest.samples - self.latest.samples_committed) / speed

    @property
    def tokens_per_second(self) -> float:
        return sum(member.figures.get("tokens_per_second", 0.0) for member in self.workers)

    def mean(self, figure: str) -> float | None:
        """Over the workers that reported it; None if none has."""
        values = [figures[figure] for figures in self.reported.values() if figure in figures]
        return sum(values) / len(values) if values else None

    def summary(self) -> list[tuple[str, str]]:
        """(name, value) of what matters, in the order of interest."""
        loss, validation = self.mean("loss"), self.mean("val_loss")
        left = self.left_seconds
        return [
            ("loss", "-" if loss is None else f"{loss:.3f}"),
            ("validation", "-" if validation is None else f"{validation:.3f}"),
            ("tokens/s", f"{self.tokens_per_second:,.0f}"),
            ("staleness", str(max((member.staleness for member in self.workers), default=0))),
            ("pushed", in_bytes(sum(sent for sent, _ in self.moved.values()))),
            ("pulled", in_bytes(sum(received for _, received in self.moved.values()))),
            ("elapsed", in_minutes(self.elapsed_seconds)),
            ("left", "-" if left is None else in_minutes(left)),
        ]


class Lines:
    """For a file or a pipe: every line as it comes, and one line of progress every PLAIN_SECONDS."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._printer = Printer(console)
        self._printed = -PLAIN_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        pass

    def line(self, source: str, text: str) -> None:
        self._printer(source, text)

    def status(self, status: Status) -> None:
        progress = self._progress
        progress.take(status)
        if progress.started is None or progress.clock() < self._printed + PLAIN_SECONDS:
            return
        self._printed = progress.clock()
        figures = ", ".join(f"{name} {value}" for name, value in progress.summary())
        self._printer("shoal", f"iteration {progress.iteration}/{progress.iterations}: {figures}")


class Screen:
    """For a terminal: a view that is drawn over, with the processes' own lines scrolling above it."""

    def __init__(self, title: str, progress: Progress, console: Console) -> None:
        self._title = title
        self._progress = progress
        self._printer = Printer(console)
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def line(self, source: str, text: str) -> None:
        self._printer(source, text)

    def status(self, status: Status) -> None:
        self._progress.take(status)

    def _draw(self) -> RenderableType:
        progress = self._progress
        if progress.latest is None:
            return Text(f"{self._title}: starting", style="bold")
        waiting = f"; waiting: {progress.latest.waiting}" if progress.latest.waiting else ""
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self._title, style="bold"),
            f"iteration {progress.iteration:,}/{progress.iterations:,}",
            ProgressBar(total=max(1, progress.iterations), completed=progress.iteration, width=SPARK_COLUMNS),
        )
        figures = Table.grid(padding=(0, 2))
        figures.add_row(*(Text(name, style="dim") for name, _ in progress.summary()))
        figures.add_row(*(Text(value, style="bold") for _, value in progress.summary()))
        return Group(
            head,
            Text(f"{sparkline(progress.losses)}  loss", style="green"),
            figures,
            _members(progress.latest.members),
            Text(f"{progress.latest.phase}, {progress.latest.policy}{waiting}", style="dim"),
        )


def sparkline(values: Sequence[float], columns: int = SPARK_COLUMNS) -> str:
    """The course of `values` in at most `columns` characters, each the mean of its share of them."""
    if not values:
        return ""
    columns = min(columns, len(values))
    edges = [index * len(values) // columns for index in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def in_bytes(count: float) -> str:
    """12345678 -> "12.3 MB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def in_minutes(seconds: float) -> str:
    """75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _members(members: Sequence[MemberStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("member")
    table.add_column("state")
    for name in ("clock", "version", "stale", "loss", "tokens/s", "sent", "received"):
        table.add_column(name, justify="right")
    for member in members:
        figures = member.figures
        table.add_row(
            member.name,
            member.state,
            f"{member.clock:,}",
            f"{member.version:,}",
            f"{member.staleness:,}" if member.name.startswith("worker/") else "",
            f"{figures['loss']:.3f}" if "loss" in figures else "",
            f"{figures['tokens_per_second']:,.0f}" if "tokens_per_second" in figures else "",
            in_bytes(member.sent),
            in_bytes(member.received),
        )
    return table
