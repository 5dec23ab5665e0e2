"""A process that leads until it is killed: python campaigner.py URL JOB NAME LEASE_MS; prints every epoch it gets."""

from __future__ import annotations

import asyncio
import sys

from shoal import registry


async def lead(url: str, job: str, name: str, lease_ms: str) -> None:
    held = await registry.open(url, job, int(lease_ms)).campaign(name, "tcp://127.0.0.1:1", 60_000)
    print(held.epoch, flush=True)
    print(f"lost: {await held.lost}", flush=True)


if __name__ == "__main__":
    asyncio.run(lead(*sys.argv[1:]))
