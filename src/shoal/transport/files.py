"""Every connection is an open file: the system allows as many as a process will need, or it says so at the start."""

from __future__ import annotations

import resource

from shoal.errors import ConfigurationError

SPARE = 128  # for listeners, libraries, logs, snapshots


def allow(connections: int, wished: int = 0) -> None:
    """Lets this process have this many connections at once; more, up to `wished`, where the system has no objection.

    Raises its soft limit of open files as far as needed, at most to the hard one; ConfigurationError when
    that is too low for `connections`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed, wanted = (max(count, connections) + SPARE for count in (0, wished))
    if hard != resource.RLIM_INFINITY:
        if hard < needed:
            raise ConfigurationError(
                f"{connections} connections need {needed} open files, and the system allows this process {hard}: "
                f"raise its hard limit (`ulimit -Hn {needed}`, LimitNOFILE= of its service, --ulimit nofile={needed} "
                f"of its container), or use fewer workers for a server"
            )
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
