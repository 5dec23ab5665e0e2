"""A run in words: one line an event, with its time, who it went from and to, and what it said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass

import msgspec

from shoal.vocabulary import Contributor, Lease, TableSpec, Weighted


@dataclass(frozen=True)
class Line:
    """One line of the transcript. target "": it happened at the source alone."""

    at_ms: int
    source: str
    target: str
    what: object
    note: str = ""

    def __str__(self) -> str:
        way = f"{self.source} -> {self.target}" if self.target else self.source
        note = f"   [{self.note}]" if self.note else ""
        return f"{self.at_ms:6d} ms  {way:<26} {in_words(self.what)}{note}"


def transcript(lines: Iterable[Line]) -> str:
    return "\n".join(str(line) for line in lines)


def in_words(thing: object) -> str:
    """A message, effect or value, short: what is at its default is left out."""
    match thing:
        case str():
            return thing
        case Contributor(worker=worker, incarnation=incarnation, clock=clock, attempt=attempt):
            return f"w{worker}.{incarnation}@{clock}" + (f"#{attempt}" if attempt else "")
        case Weighted(contributor=contributor, weight=weight):
            return f"{weight:.3g}*{in_words(contributor)}"
        case Lease(identity=identity, epoch=epoch, spans=spans):
            return f"lease {identity} of epoch {epoch}: " + " ".join(f"{start}-{stop}" for start, stop in spans)
        case TableSpec(rule=rule, policy=policy):
            return f"table({rule}, {policy.kind})"
        case tuple() | list():
            return f"({', '.join(in_words(item) for item in thing)})"
        case float():
            return f"{thing:.4g}"
        case msgspec.Struct():
            defaults = dict(zip(reversed(thing.__struct_fields__), reversed(thing.__struct_defaults__), strict=False))
            return _named(thing, ((name, defaults.get(name)) for name in thing.__struct_fields__))
        case _ if is_dataclass(thing):
            return _named(thing, ((item.name, item.default) for item in fields(thing)))
        case _:
            return str(thing)


def _named(thing: object, named: Iterable[tuple[str, object]]) -> str:
    def parts() -> Iterator[str]:
        for name, default in named:
            value = getattr(thing, name)
            if value != default and value != ():
                yield f"{name}={in_words(value)}"

    return f"{type(thing).__name__}({', '.join(parts())})"
