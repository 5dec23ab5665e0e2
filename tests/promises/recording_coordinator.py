"""A coordinator's process that writes what it commits to the file in RECORD, one JSON line an entry.

RECORD=log.json recording_coordinator.py --listen tcp://127.0.0.1:0
"""

from __future__ import annotations

import os
import sys

import msgspec
from cluster import Observed, Observer

from shoal.runtime import coordinator, process
from shoal.runtime.node import Node
from shoal.transport.base import Connection
from shoal.wire import messages as m


class Recorder(Observer):
    """Notes entries in a file, each once, before they leave."""

    def __call__(self, connection: Connection) -> Connection:
        return Observed(connection, self)

    def note(self, message: m.Message) -> None:
        if isinstance(message, m.Commit) and message.seq not in self.commits:
            with open(os.environ["RECORD"], "ab") as record:
                record.write(msgspec.json.encode(message) + b"\n")
        super().note(message)


async def start() -> Node:
    node = coordinator.CoordinatorNode(process.job_from(), wrap=Recorder())
    print(process.READY, await node.listen(sys.argv[sys.argv.index("--listen") + 1]), flush=True)
    return node


if __name__ == "__main__":
    sys.exit(process.run(start))
