"""How far a step is that a worker began and does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from shoal.core import session as s
from shoal.vocabulary import Lease


class Progress:
    """Told by the loop, read by the thread that trains."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched = False
        self.staged = False  # the gradients' memory is read no more, but where it is shared
        self.arrived: frozenset[int] = frozenset()  # blocks that are final, though others are still on their way
        self.lease: Lease | None = None  # samples for the next step came with word of the commit

    def begin(self) -> None:
        self._watched, self.staged, self.arrived, self.lease = True, False, frozenset(), None

    def of(self, session: s.Session) -> None:
        """Look at the session after something happened to it. On the loop."""
        if not self._watched:
            return
        # A newer cut may take the place of the one that is arriving. Only where parameters do not change
        # while this worker computes is a block of the one as good as that of the other.
        released = session.released if session.still else None
        arriving = released is not None and session.arrival.version >= released.version
        with self._changed:
            self.staged = session.parked == "step" and session.finish is None  # not before it was told to finish
            self.arrived = frozenset(session.arrival.arrived) if arriving else frozenset()
            self.lease = None if released is None else released.lease
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """On the training thread. The session's deadline ends every wait."""
        with self._changed:
            self._changed.wait_for(condition)

    def end(self) -> None:
        self._watched = False
