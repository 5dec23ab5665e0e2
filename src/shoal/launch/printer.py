"""Prints the lines of many processes as one stream, each with its source in front."""

from __future__ import annotations

import zlib

from rich.console import Console
from rich.text import Text

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")


class Printer:
    """Writes "[worker 1] text" to standard output, in colour where it is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)

    def __call__(self, source: str, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(Text(f"[{source}] ", _colour(source)) + Text.from_ansi(text), soft_wrap=True)
        else:
            self._console.file.write(f"[{source}] {text}\n")
            self._console.file.flush()


def _colour(source: str) -> str:
    """The same source always has the same colour; numbered neighbours have different ones."""
    kind, _, number = source.rpartition(" ")
    shift = int(number) if number.isdecimal() else 0
    return _COLOURS[(zlib.crc32(kind.encode()) + shift) % len(_COLOURS)]
