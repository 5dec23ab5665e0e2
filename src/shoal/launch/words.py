"""What nodes print for their launcher, and the words in which it tells how a process ended."""

from __future__ import annotations

import signal
from collections.abc import Callable

from shoal.launch.child import Child

Say = Callable[[str], None]  # what the launcher itself has to say

READY = "SHOAL READY "  # and the address, of a node that serves
BEGUN = "SHOAL BEGUN"  # of the coordinator: the job runs
ERROR = "shoal: error: "  # and what makes it give up, of any process


def ending(status: int) -> str:
    """How a process ended. status: as Exited has it."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal without a name
        return f"was killed by signal {-status}"


def why(child: Child) -> str:
    """What the child itself said last, to be put behind its name."""
    lines = [line for line in child.last_lines if not line.startswith((READY, BEGUN))]
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if errors:
        return f": {errors[-1]}"
    return f", its last lines: {' | '.join(lines)}" if lines else ""
