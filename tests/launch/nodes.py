"""Stands in for the nodes of a job: says it is ready and serves no one, or fails as FAKE_<NODE> says.

    python nodes.py coordinator --listen tcp://127.0.0.1:0
    python nodes.py server

FAKE_COORDINATOR, FAKE_SERVER: "" (good), "silent" (never ready), "refuses" (gives up with an error),
"quits" (gives up once ready), "leaves" (ends with 0 once ready), "stubborn" (ignores SIGTERM),
"forming" (the job never begins).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time


def main() -> None:
    node = sys.argv[1]
    fault = os.environ.get(f"FAKE_{node.upper()}", "")
    assert os.environ["SHOAL_TOKEN"]
    assert os.environ["SHOAL_JOB"]
    print(f"{node} pid={os.getpid()}")
    if fault == "refuses":
        print(f"shoal: error: this {node} does not like it here", file=sys.stderr)
        sys.exit(4)
    if fault == "silent":
        time.sleep(600)
    if fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.create_server(("127.0.0.1", port(node)))
    print(f"SHOAL READY tcp://127.0.0.1:{listener.getsockname()[1]}")
    if node == "coordinator" and fault != "forming":
        print("SHOAL BEGUN")
    if fault == "quits":
        sys.exit(5)
    if fault == "leaves":
        sys.exit(0)
    time.sleep(600)


def port(node: str) -> int:
    if node == "coordinator":
        return int(sys.argv[sys.argv.index("--listen") + 1].rpartition(":")[2])
    assert os.environ["SHOAL_COORDINATOR"].startswith("tcp://127.0.0.1:")
    return 0


main()
