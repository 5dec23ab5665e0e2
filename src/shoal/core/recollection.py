"""What snapshots ask of one worker: its random state as a clock begins, and a file of what its codecs had lost.

Each is taken as soon as it can be, for the training thread goes on: a state that was there when it was asked for may
be gone before the file is written. Answers may have to be repeated, and stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.core import machine as k
from shoal.wire import messages as m

REMEMBERED_CLOCKS = 3  # a snapshot asks for the clock under way, or for the one before if word of it is late
ANSWERS_MAX = 4  # that may have to be repeated

State = Callable[[], bytes]


@dataclass
class _Asked:
    recall: m.Recall
    state: bytes | None = None  # None: the training thread has not come to that clock
    file: str | None = None  # None: it is being written
    told: bool = False

    @property
    def due(self) -> bool:
        return self.state is not None and self.file is not None and not self.told


@dataclass
class Recollection:
    """By remember() the training thread says what its steps begin with; the rest is the session's.

    keeps: its codecs lose what the next contribution has to make good.
    """

    keeps: bool = False
    states: dict[int, State] = field(default_factory=dict)  # by clock
    _asked: dict[int, _Asked] = field(default_factory=dict)  # by entry of the snapshot

    def remember(self, clock: int, state: State) -> None:
        """What `clock` begins with. From the training thread, so dictionaries are changed in one piece."""
        wanted = {asked.recall.clock for asked in list(self._asked.values()) if asked.state is None}
        newest = sorted(self.states)[-REMEMBERED_CLOCKS + 1 :]
        kept = {each: known for each, known in self.states.items() if each in newest or each in wanted}
        self.states = {**kept, clock: state}

    def asks(self, recall: m.Recall, still: bool) -> list[k.Retain]:
        """A snapshot asks, perhaps again; returns what is to be written. still: see answers()."""
        known = self._asked.get(recall.seq)
        if known is not None and known.recall == recall:
            known.told = False
            return []
        older = dict(sorted(self._asked.items())[-ANSWERS_MAX:])
        self._asked = {**older, recall.seq: _Asked(recall, file=None if self.keeps else "")}
        self._take(still)
        return [k.Retain(recall.seq, recall.path, recall.used)] if self.keeps else []

    def written(self, seq: int, file: str) -> None:
        """The file of what codecs had lost is there. file: a receipt; "": it is not to be had."""
        asked = self._asked.get(seq)
        if asked is not None and asked.file is None:
            asked.file = file

    def answers(self, still: bool) -> list[tuple[int, bytes, str]]:
        """(entry, random state, file) of what can be told, once each time it is asked. still: the training thread waits
        for samples, and has drawn nothing since its last step."""
        self._take(still)
        due = [asked for asked in self._asked.values() if asked.due]
        for asked in due:
            asked.told = True
        return [(asked.recall.seq, asked.state or b"", asked.file or "") for asked in due]

    def _take(self, still: bool) -> None:
        for asked in self._asked.values():
            if asked.state is None:
                asked.state = self._state_at(asked.recall.clock, still)

    def _state_at(self, clock: int, still: bool) -> bytes | None:
        """Empty where it is not known, and will not be; None: not known yet."""
        states = self.states
        newest = max(states, default=-1)
        if newest < 0 or (clock and clock < newest and clock not in states):
            return b""
        if clock in states:
            return states[clock]()
        # Under Bounded and Async, which ask for clock 0, any state will do.
        return states[newest]() if clock == 0 or still else None
