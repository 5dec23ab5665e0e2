"""A peer that should be there is tried until it answers, or until one clear StartupError."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shoal.errors import StartupError

PAUSE_FIRST_S = 0.01  # between two tries; doubles up to PAUSE_MAX_S
PAUSE_MAX_S = 0.25

T = TypeVar("T")


async def dial(address: str, attempt: Callable[[], Awaitable[T]], deadline_ms: int) -> T:
    """The result of the first `attempt` that raises no OSError.

    Raises StartupError after deadline_ms; a try that is still under way then is cancelled.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    deadline = start + deadline_ms / 1000
    pause_s, tries, last = PAUSE_FIRST_S, 0, "no answer"
    while loop.time() < deadline:
        tries += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await attempt()
        except TimeoutError:
            break
        except OSError as error:
            # The loops word one error differently; the number says it in the system's words.
            last = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        await asyncio.sleep(min(pause_s, max(0.0, deadline - loop.time())))
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
    raise StartupError(
        f"nothing answered at {address} in {loop.time() - start:.1f} s ({tries} tries, last: {last}); "
        "check that the process there is running and that the address is right"
    )
