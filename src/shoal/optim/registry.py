"""The table of update rules by name: what a TableSpec may ask a server for."""

from __future__ import annotations

from shoal.errors import ConfigurationError
from shoal.optim.adagrad import Adagrad
from shoal.optim.adam import Adam, AdamW
from shoal.optim.delayed import DelayedNesterov
from shoal.optim.lamb import LAMB
from shoal.optim.lion import Lion
from shoal.optim.rmsprop import RMSprop
from shoal.optim.rule import Rule, Settings
from shoal.optim.sgd import SGD

KNOWN: tuple[type[Rule], ...] = (SGD, Adagrad, RMSprop, Adam, AdamW, LAMB, Lion, DelayedNesterov)
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in KNOWN}


def rule_type(name: str) -> type[Rule]:
    """The rule called `name` (ConfigurationError for one that this version does not know)."""
    try:
        return RULES[name]
    except KeyError:
        raise ConfigurationError(f"unknown rule {name!r}; known: {', '.join(RULES)}") from None


def rule_for(name: str, settings: Settings) -> Rule:
    """The rule called `name` with the settings of one parameter group."""
    return rule_type(name).from_settings(settings)
