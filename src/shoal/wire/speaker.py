"""Who alone may say what: a node takes a message from no one but the node that it speaks for.

So a peer that is confused, or of ill will, can spoil its own part and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from shoal.vocabulary import COORDINATOR, server_name, worker_name
from shoal.wire import fleet
from shoal.wire import messages as m

ANYONE = ""


def speaker(message: m.Message) -> str:
    """The name of the node that this message must come from; ANYONE if that does not matter."""
    return _SPEAKERS[type(message)](message)


def _anyone(_: m.Message) -> str:
    return ANYONE


def _coordinator(_: m.Message) -> str:
    return COORDINATOR


def _server(
    message: m.Register
    | m.Attached
    | m.Staged
    | m.Complete
    | m.Parameters
    | m.Moved
    | m.Created
    | m.Applied
    | m.Norms
    | m.Saved
    | m.Recovered
    | m.Forward
    | m.Share
    | m.Held
    | m.Fill
    | m.Filled
    | m.Whole,
) -> str:
    return server_name(message.server)


def _contributor(message: m.Stage | m.Ready) -> str:
    return worker_name(message.contributor.worker)


def _offerer(message: m.Offer) -> str:
    return _contributor(message.ready)


def _worker(
    message: m.Declare
    | m.Attach
    | m.Copied
    | m.Pull
    | m.Refresh
    | m.LeaseRequest
    | m.SnapshotRequest
    | m.Recalled
    | m.Leave
    | m.Report
    | m.Resume,
) -> str:
    return worker_name(message.worker)


def _rank(message: m.Join) -> str:
    return worker_name(message.rank) if message.rank >= 0 else ANYONE


_SPEAKERS: dict[type[m.Message], Callable[..., str]] = {
    **dict.fromkeys(get_args(fleet.Any), _anyone),  # the nodes of a job ignore it; a fleet's own know who may say it
    # A heartbeat may be on its way while a worker that asked for any rank takes the name it got.
    **dict.fromkeys((m.Hello, m.Accepted, m.Refused, m.StatusRequest, m.Heartbeat, m.Drain, m.SetPolicy), _anyone),
    **dict.fromkeys(
        (
            m.Register, m.Attached, m.Staged, m.Complete, m.Parameters, m.Moved, m.Created, m.Applied, m.Norms,
            m.Saved, m.Recovered, m.Forward, m.Share, m.Held, m.Fill, m.Filled, m.Whole,
        ),
        _server,
    ),
    **dict.fromkeys((m.Stage, m.Ready), _contributor),
    **dict.fromkeys(
        (
            m.Declare, m.Attach, m.Copied, m.Pull, m.Refresh, m.LeaseRequest, m.SnapshotRequest, m.Leave, m.Report,
            m.Resume, m.Recalled,
        ),
        _worker,
    ),
    m.Offer: _offerer,
    m.Join: _rank,
    **dict.fromkeys(
        (
            m.Registered, m.Welcome, m.Create, m.Declared, m.Await, m.Foresee, m.Commit, m.Factors, m.Released,
            m.Waiting, m.Granted, m.SnapshotDone, m.Left, m.Fenced, m.Stop, m.Alive, m.Status,
            m.Recover, m.Introduce, m.Resumed, m.Placed, m.Prepare, m.Draining, m.Recall, m.PolicySet,
        ),
        _coordinator,
    ),
}  # fmt: skip
