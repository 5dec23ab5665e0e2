"""The processes of the TensorFlow peer: one parameter server and the workers, which the chief starts.

TensorFlow's servers listen on all of a machine's addresses, trust whoever connects, and cannot be told to do
otherwise. So the chief and all it starts live in a network namespace of their own, which has a loopback device
and nothing else; a machine that allows none is refused. In there every port is free.

Each server is told by TF_CONFIG who it is, as TensorFlow's documentation describes. One that ends, for whatever
reason, ends the chief, which says why; when the chief is gone the kernel kills the others.

python -m shoal.bench.peers.tensorflow_cluster          (a server; never returns)
python -m shoal.bench.peers.tensorflow_cluster SETUP    (the chief, of a user who is not root)
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import re
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from shoal.errors import StartupError
from shoal.launch.child import ChildProcess, Exited, Line

Cluster = dict[str, list[str]]  # the addresses of each job's tasks

HOST, FIRST_PORT = "127.0.0.1", 2222
START_SECONDS = 180.0  # until all servers accept connections; most of it is the import of TensorFlow
LOOK_SECONDS = 0.1
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "GRPC_FAIL_FAST": "use_caller",  # a server that is gone is an error, not a wait
    "KERAS_BACKEND": "tensorflow",
}
PROGRAM = (sys.executable, "-m", "shoal.bench.peers.tensorflow_cluster")

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # from <linux/sched.h>
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914  # from <linux/sockios.h>
IFF_UP = 0x1  # from <linux/if.h>
CAP_SYS_ADMIN = 21  # from <linux/capability.h>, a bit of those held


def start(workers: int, cores: int) -> Cluster:
    """Start the servers, children of this thread, and wait until all of them accept connections.

    cores: to be shared out among the workers; the parameter server may use all, as other peers' servers do.
    Raises StartupError where there can be no namespace, or when one is not there in time.
    """
    enter_namespace()
    cluster = addresses(workers)
    for job, hosts in cluster.items():
        threads = cores if job == "ps" else max(1, cores // workers)
        for index in range(len(hosts)):
            task = {"cluster": cluster, "task": {"type": job, "index": index}}
            facts = {"TF_CONFIG": json.dumps(task), "OMP_NUM_THREADS": str(threads)}
            ChildProcess(f"tensorflow {job} {index}", PROGRAM, {**os.environ, **facts}, _tell)
    until = time.monotonic() + START_SECONDS
    for job, hosts in cluster.items():
        for index, host in enumerate(hosts):
            _wait_for(host, f"tensorflow {job} {index}", until)
    return cluster


def addresses(workers: int) -> Cluster:
    """Where the parameter server and each worker listen."""
    found = [f"{HOST}:{FIRST_PORT + number}" for number in range(1 + workers)]
    return {"ps": found[:1], "worker": found[1:]}


def serve(tensorflow: Any) -> None:
    """Be the server that TF_CONFIG says: never returns."""
    resolver = tensorflow.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = resolver.cluster_spec()
    config = tensorflow.compat.v1.ConfigProto(
        intra_op_parallelism_threads=int(os.environ["OMP_NUM_THREADS"]),
        inter_op_parallelism_threads=cluster.num_tasks("worker") + 1,  # as advised; with fewer, servers can deadlock
    )
    name, index = resolver.task_type, resolver.task_id
    tensorflow.distribute.Server(cluster, job_name=name, task_index=index, protocol="grpc", config=config).join()


def enter_namespace() -> None:
    """Leave the machine's network, for one with a loopback device only (StartupError for those who may not)."""
    _unshare(CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0)))
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | IFF_UP))


def may_leave() -> bool:
    """Whether this process may have a network namespace: it holds CAP_SYS_ADMIN."""
    (held,) = re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    return bool(int(held, 16) >> CAP_SYS_ADMIN & 1)


def become_chief() -> None:
    """Let this process have namespaces, then be the chief. A process of more than one thread cannot be let."""
    _unshare(CLONE_NEWUSER)
    from shoal.bench import exchange_worker

    exchange_worker.main()


def _unshare(kind: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(kind) != 0:
        raise StartupError(
            "TensorFlow's servers listen on every address, and this machine does not let them have a network "
            f"namespace of their own ({os.strerror(ctypes.get_errno())}): run it as root, or leave this peer out"
        )


def _wait_for(address: str, name: str, until: float) -> None:
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=LOOK_SECONDS).close()
        except OSError:
            if time.monotonic() >= until:
                raise StartupError(f"{name} was not there after {START_SECONDS:g} s") from None
            time.sleep(LOOK_SECONDS)
        else:
            return


def _tell(event: Line | Exited) -> None:
    """Pass on what a server says; its end is the chief's."""
    match event:
        case Line(child, text):
            print(f"{child.name}: {text}", flush=True)
        case Exited(child, status):
            print(f"{child.name} (pid {child.pid}) ended with status {status}", flush=True)
            os._exit(1)


if __name__ == "__main__":
    if sys.argv[1:]:
        become_chief()
    else:
        serve(importlib.import_module("tensorflow"))
