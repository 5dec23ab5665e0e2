"""`shoal snapshot`: what snapshots there are, whether each byte of them is as it was written, and what is in them."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.errors import SnapshotError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shoal.storage.comparison import Comparison, Difference
    from shoal.storage.shelf import Found

Where = Annotated[str, typer.Argument(metavar="PATH", help="A snapshot, or what holds some: a directory or a URL.")]
One = Annotated[str, typer.Argument(metavar="PATH", help="A snapshot: a directory or a URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]

snapshot = typer.Typer(name="snapshot", no_args_is_help=True, rich_markup_mode=None)


@snapshot.callback()
def _group() -> None:
    """List, check, export and compare snapshots."""


@snapshot.command()
def ls(path: Where, as_json: AsJson = False) -> None:
    """List snapshots, oldest first: what each holds, and whether it is whole or what is wrong with it.

    Looks at manifests and at the sizes of files; `verify` reads every byte.
    """
    from shoal.storage.shelf import find

    found = find(path)
    if as_json:
        for item in found:
            typer.echo(json.dumps(_found_object(item)))
    else:
        _print(_found_table(found))


@snapshot.command()
def verify(path: Where) -> None:
    """Read every byte, and compare it with what was written. Exits with 1 if anything is bad, and says what."""
    from shoal.cli.live import in_bytes
    from shoal.storage.shelf import find
    from shoal.storage.shelf import verify as verified

    bad = 0
    found = find(path)
    with _progress("verify", sum(item.size_bytes for item in found)) as progress:
        for item in found:
            try:
                if item.wrong and item.manifest is None:
                    raise SnapshotError(f"{item.place} is no whole snapshot: {item.wrong}")
                manifest = verified(str(item.place), progress)
            except SnapshotError as error:
                bad += 1
                typer.echo(f"shoal: bad snapshot: {error}", err=True)
            else:
                what = f"version {manifest.version:,}, {len(manifest.files)} files, {in_bytes(manifest.size_bytes)}"
                typer.echo(f"{item.place}: every byte is as it was written ({what})")
    raise typer.Exit(1 if bad else 0)


@snapshot.command()
def export(
    path: One,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file NAME.safetensors, or a directory.")],
) -> None:
    """Copy a snapshot's parameters, as one file that torch and transformers open; every byte is checked."""
    from shoal.storage.manifest import read
    from shoal.storage.model import export as exported
    from shoal.storage.place import place

    manifest = read(place(path))
    with _progress("export", manifest.model.size_bytes) as progress:
        written = exported(path, out, progress)
    typer.echo(f"{len(manifest.spec.tensors)} tensors of version {manifest.version:,}: {written}")


@snapshot.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A snapshot: a directory or a URL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object.")] = False,
) -> None:
    """Compare two snapshots tensor by tensor, and their optimizer state. Exits with 1 if they differ."""
    from shoal.storage.comparison import compare_snapshots
    from shoal.storage.manifest import read
    from shoal.storage.place import place

    total = sum(file.size_bytes for path in (a, b) for file in read(place(path)).shard_files)
    with _progress("diff", total) as progress:
        found = compare_snapshots(a, b, progress)
    if as_json:
        typer.echo(json.dumps(_comparison_object(a, b, found)))
    else:
        _print(_comparison_table(a, b, found))
    raise typer.Exit(0 if found.same else 1)


def _found_object(item: Found) -> dict[str, Any]:
    manifest = item.manifest
    facts = {name: getattr(manifest, name, None) for name in ("job", "version", "clock", "shards")}
    known = item.written if 0 < item.written < float("inf") else None
    return {
        "directory": str(item.place), **facts, "bytes": item.size_bytes, "written": known,
        "whole": item.whole, "wrong": item.wrong,
    }  # fmt: skip


def _found_table(found: list[Found]) -> RenderableType:
    from shoal.cli.live import in_bytes

    columns = ("directory", "version", "clock", "shards", "size", "age", "state")
    result = _table("", columns, left=("directory", "state"))
    for item in found:
        manifest = item.manifest
        figures = ("", "", "") if manifest is None else (manifest.version, manifest.clock, manifest.shards)
        shown = [f"{figure:,}" if isinstance(figure, int) else figure for figure in figures]
        state = item.wrong.removeprefix(f"{item.place}/") or "whole"
        result.add_row(item.place.name, *shown, in_bytes(item.size_bytes), _age(item.written), state)
    return result


def _comparison_object(a: str, b: str, found: Comparison) -> dict[str, Any]:
    """NaN and infinity are no JSON: they are given as text."""
    tensors = [asdict(item) for item in found.tensors]
    for item in tensors:
        if item["largest"] is not None and not abs(item["largest"]) < float("inf"):
            item["largest"] = str(item["largest"])
    return {
        "a": a, "b": b, "versions": found.versions, "same": found.same, "tensors": tensors,
        "state_differs": found.state_differs, "state": found.state,
    }  # fmt: skip


def _comparison_table(a: str, b: str, found: Comparison) -> RenderableType:
    title = f"A: {a}, version {found.versions[0]:,}\nB: {b}, version {found.versions[1]:,}"
    result = _table(title, ("tensor", "elements", "changed", "max difference", ""), left=("tensor", ""))
    for item in found.tensors:
        largest = "" if not item.changed else f"{item.largest:.3g}"
        result.add_row(item.tensor, f"{item.elements:,}", f"{item.changed:,}", largest, item.verdict)
    result.caption = "\n".join(_totals(found))
    return result


def _totals(found: Comparison) -> Iterator[str]:
    counts: dict[str, int] = {}
    for item in found.tensors:
        counts[item.verdict] = counts.get(item.verdict, 0) + 1
    verdicts = ", ".join(f"{count} {verdict.replace('differs', 'differ')}" for verdict, count in counts.items())
    yield f"{len(found.tensors)} tensors: {verdicts}; largest difference {_largest(found.tensors):.3g}"
    differing = ", ".join(f"{what} of {count} tensors" for what, count in found.state.items() if count)
    yield f"optimizer state differs: {differing}" if differing else "optimizer state is equal"


def _largest(tensors: tuple[Difference, ...]) -> float:
    known = [item.largest for item in tensors if item.largest is not None]
    return next((value for value in known if math.isnan(value)), max(known, default=0.0))  # NaN, if there is one


def _table(title: str, columns: tuple[str, ...], left: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    result = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    for name in columns:
        text = name in left
        result.add_column(name, justify="left" if text else "right", no_wrap=name != "state", overflow="fold")
    return result


def _print(shown: RenderableType) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=200, highlight=False)  # a file or a pipe has no edge to wrap at
    console.print(shown)


def _age(written: float) -> str:
    if not 0 < written < float("inf"):
        return "?"
    seconds = max(0.0, time.time() - written)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A live line on a terminal, for what takes longer than a blink; gone in the end."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, transient=True, disable=quiet, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total)
        yield lambda count: shown.advance(task, count)
