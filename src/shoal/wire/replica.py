"""Messages of replication: which servers hold which shard, and how an update comes to lie on all of them.

An update is combined by the shard's primary and forwarded, as one sum, to its backups. Only when every
replica of every shard holds it does it enter the log; each then applies it on its own.
"""

from __future__ import annotations

from shoal.vocabulary import Weighted
from shoal.wire.message import Message


class Placed(Message, frozen=True, array_like=True, tag=True):
    """Which servers hold which shard, from this view on; a later view is a newer one.

    chains: by shard its servers, the primary first; filling: those that are backups, but do not have all of their
    shard yet; addresses: of all of them.
    """

    view: int
    chains: tuple[tuple[int, ...], ...]
    filling: tuple[int, ...]
    addresses: tuple[tuple[int, str], ...]

    @property
    def primaries(self) -> tuple[int, ...]:
        """By shard."""
        return tuple(chain[0] for chain in self.chains)

    def address(self, server: int) -> str:
        return dict(self.addresses)[server]


class Prepare(Message, frozen=True, array_like=True, tag=True):
    """Combine these contributions, once they are all here, and forward the sum to these servers.

    blocks: how many each contributor has in this shard; number: grows
    with every update that is prepared in this epoch.
    """

    epoch: int
    number: int
    contributors: tuple[Weighted, ...]
    blocks: tuple[int, ...]
    to: tuple[int, ...]


class Forward(Message, frozen=True, array_like=True, tag=True):
    """The sum of these contributions; the payload holds `blocks` of it one after the other, in float32.

    total: how many blocks it has; the others have no gradient. Without payload they lie in the sender's arena of
    sums, whose descriptor goes along. in_place: nobody has summed anything; the contributions lie complete in their
    workers' arenas, which were shared before.
    """

    server: int
    epoch: int
    number: int
    contributors: tuple[Weighted, ...]
    total: int
    blocks: tuple[int, ...]
    in_place: bool = False


class Share(Message, frozen=True, array_like=True, tag=True):
    """The descriptor of the arena in which this worker's gradients lie goes along: its worker is on this host, too."""

    server: int
    worker: int
    incarnation: int


class Held(Message, frozen=True, array_like=True, tag=True):
    """The server has the whole sum, and can apply it without any other node."""

    server: int
    epoch: int
    number: int


class Fill(Message, frozen=True, array_like=True, tag=True):
    """Blocks of a shard as they are at `version`, for a server that has yet to get them: parameters, states and
    step counts. updated: the last entry that changed parameters by then."""

    server: int
    version: int
    updated: int
    blocks: tuple[int, ...]


class Filled(Message, frozen=True, array_like=True, tag=True):
    """Answers Fill: the server has these blocks, and updates them from now on."""

    server: int
    blocks: tuple[int, ...]


class Drain(Message, frozen=True, array_like=True, tag=True):
    """Have others take over what these servers do, and then let them go. what: a server's name, or a host's."""

    what: str


class Draining(Message, frozen=True, array_like=True, tag=True):
    """Answers Drain: these servers will end once others hold all that they do; error: why none will."""

    servers: tuple[int, ...]
    error: str = ""


class Whole(Message, frozen=True, array_like=True, tag=True):
    """The server has all blocks of its shard: it may take the primary's place."""

    server: int
