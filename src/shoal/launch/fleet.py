"""What the launcher and the members of a fleet have in common: addresses, the fleet's token, limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from shoal.config import Job, Limits
from shoal.errors import ConfigurationError
from shoal.runtime import process
from shoal.transport.tcp import SCHEME, host_and_port
from shoal.wire.fleet import FLEET

MEMBERS_VARIABLE, TOKEN_VARIABLE = "SHOAL_FLEET", "SHOAL_FLEET_TOKEN"
ADDRESS_DEFAULT = "127.0.0.1:7700"

MEMBERS_MAX = 256
MESSAGE_BYTES_MAX = 1 << 20  # more than the longest line of output
QUEUE_BYTES_MAX = 8 << 20  # of lines for a launcher that takes none
NEVER_LONG_US = 1 << 40  # words alone go over these connections: no link is so long that they need several


def fleet_job(environment: Mapping[str, str] = os.environ, places: int = 1) -> Job:
    """The fleet as its nodes see it: its token, TLS and limits. places: launchers that may come at once.

    Raises ConfigurationError for what cannot be.
    """
    limits = replace(
        Limits.from_environment(environment),
        message_bytes_max=MESSAGE_BYTES_MAX,
        payload_bytes_max=1,  # there is none
        queue_bytes_max=QUEUE_BYTES_MAX,
        long_link_us=NEVER_LONG_US,
    )
    token = process.text_from(TOKEN_VARIABLE, environment)
    return Job(FLEET, token, workers=places, servers=0, limits=limits, tls=process.tls_from(environment))


def members_from(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The addresses ("tcp://host:port") of the members that SHOAL_FLEET names; none where it is not set.

    Raises ConfigurationError for what is no HOST:PORT[,HOST:PORT...].
    """
    given = environment.get(MEMBERS_VARIABLE, "")
    found = tuple(dict.fromkeys(member_address(part.strip()) for part in given.split(",") if part.strip()))
    if len(found) > MEMBERS_MAX:
        raise ConfigurationError(f"--fleet names {len(found)} members; at most {MEMBERS_MAX} will do")
    return found


def member_address(text: str) -> str:
    """tcp://HOST:PORT of HOST:PORT; ConfigurationError for anything else."""
    address = f"{SCHEME}://{text.removeprefix(f'{SCHEME}://')}"
    host_and_port(address)
    return address


def member_name(address: str) -> str:
    """What a launcher calls the member there."""
    return f"fleet member {address.removeprefix(f'{SCHEME}://')}"
