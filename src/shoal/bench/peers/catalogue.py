"""The peers by name: what each is, what it needs installed, and which processes it takes.

Nothing is imported from a peer here, so the command line can name all of them anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from shoal.errors import ConfigurationError

ALL, NONE = "all", "none"


@dataclass(frozen=True)
class Peer:
    """One peer.

    words: what it is, for people. package: what must be importable, and install: the command that makes
    it so. server: it has a server process beside its workers. led: one process of its own gives the
    orders to its workers, and is the only one that the benchmark talks to. spins: its processes use the
    processor while they wait, so they are stopped (SIGSTOP) while it is the other side's turn. differs: what
    it does in place of an update by the mean gradient; it is then not compared with the reference.
    """

    name: str
    words: str
    package: str
    install: str
    server: bool = False
    led: bool = False
    spins: bool = False
    differs: str = ""

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


_TORCH = "pip install 'shoal[torch]'"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("ddp", "torch DistributedDataParallel over gloo, fused optimizer", "torch", _TORCH),
        Peer("allreduce", "one flat torch all-reduce over gloo, fused optimizer", "torch", _TORCH),
        Peer("rpc", "torch RPC parameter server, fused optimizer", "torch", _TORCH, server=True, spins=True),
        Peer("ray", "Ray's parameter-server pattern, fused optimizer", "ray", "pip install 'ray==2.60.*'", led=True),
        Peer(
            "tensorflow",
            "TensorFlow's ParameterServerStrategy, Keras optimizer",
            "tensorflow",
            "pip install 'tensorflow-cpu==2.21.*'",
            led=True,
            differs="applies each worker's gradient by itself, as many updates a step as workers",
        ),
    )
}


def chosen(text: str, known: Sequence[str] = tuple(PEERS)) -> tuple[tuple[str, ...], tuple[Peer, ...]]:
    """The peers that --peer names, in its order: those installed here, and those to be left out.

    text: names with commas, "all" or "none". Raises ConfigurationError for a name that is not known.
    """
    if text == NONE:
        return (), ()
    names = list(known) if text == ALL else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"--peer {name}: known are {', '.join(known)}, {ALL} and {NONE}")
    peers = [PEERS[name] for name in dict.fromkeys(names)]
    return tuple(peer.name for peer in peers if peer.installed), tuple(peer for peer in peers if not peer.installed)


def left_out(peer: Peer) -> str:
    """What to tell people about a peer that is not installed."""
    return f"{peer.name} is left out: {peer.package} is not installed; `{peer.install}` does it"
