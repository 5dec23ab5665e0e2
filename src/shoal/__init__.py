"""Shoal: a parameter server. `shoal.connect()` joins a job; see the README for the loop around it.

Names are imported when they are first used, so a server or `shoal --help` loads only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from shoal.version import __version__ as __version__

if TYPE_CHECKING:
    from shoal.adapters.local_steps import LocalSteps as LocalSteps
    from shoal.client import ParameterServer as ParameterServer
    from shoal.client import connect as connect
    from shoal.errors import ShoalError as ShoalError
    from shoal.optim import LAMB as LAMB
    from shoal.optim import SGD as SGD
    from shoal.optim import Adagrad as Adagrad
    from shoal.optim import Adam as Adam
    from shoal.optim import AdamW as AdamW
    from shoal.optim import DelayedNesterov as DelayedNesterov
    from shoal.optim import Lion as Lion
    from shoal.optim import Nesterov as Nesterov
    from shoal.optim import RMSprop as RMSprop
    from shoal.policy import Async as Async
    from shoal.policy import Bounded as Bounded
    from shoal.policy import Decoupled as Decoupled
    from shoal.policy import DelayCompensated as DelayCompensated
    from shoal.policy import Sync as Sync

_HOMES = {
    "shoal.adapters.local_steps": ("LocalSteps",),
    "shoal.client": ("ParameterServer", "connect"),
    "shoal.errors": ("ShoalError",),
    "shoal.optim": ("LAMB", "SGD", "Adagrad", "Adam", "AdamW", "DelayedNesterov", "Lion", "Nesterov", "RMSprop"),
    "shoal.policy": ("Async", "Bounded", "Decoupled", "DelayCompensated", "Sync"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
