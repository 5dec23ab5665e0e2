"""Policies as one writes them, and what is known to go wrong with them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from shoal.errors import ConfigurationError
from shoal.policy.base import Policy
from shoal.policy.delay import DelayCompensated
from shoal.policy.kinds import KINDS, Async, Bounded, Decoupled, Known, from_spec
from shoal.vocabulary import PolicySpec

WEIGHTS: Mapping[str, Any] = {"delaycompensated": DelayCompensated}
MOMENTS = {"adam": "Adam", "adamw": "AdamW", "lamb": "LAMB"}  # rules of Adam's family


def in_words(spec: PolicySpec) -> str:
    """The policy as one writes it in a script, without what is as usual: Async(age_max=16)."""
    policy = from_spec(spec)
    given = [(item, getattr(policy, item.name)) for item in fields(policy)]
    told = [f"{item.name}={value!r}" for item, value in given if value != item.default]
    return f"{type(policy).__name__}({', '.join(told)})"


def parsed(text: str) -> Known:
    """The policy that is written as in a script, such as Bounded(staleness=3), or by its name alone where that is
    enough (ConfigurationError for anything else)."""
    try:
        call = ast.parse(text.strip().replace("shoal.", ""), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        found: Known = _called(call, {kind.__name__.lower(): kind for kind in KINDS})
        return found
    except (SyntaxError, ValueError, KeyError, TypeError):
        examples = "Sync(), 'Sync(quorum=0.9)', 'Bounded(staleness=3)', 'Async(weight=\"inverse\", age_max=16)'"
        raise ConfigurationError(f"{text!r} is no policy: write it as in a script, such as {examples}") from None


def _called(call: ast.expr, known: Mapping[str, Any]) -> Any:
    """What a call of one of these, by lower-case name, makes; or the literal that it is."""
    if not isinstance(call, ast.Call):
        if known is not WEIGHTS:
            raise ValueError(call)
        return ast.literal_eval(call)
    kind = known[call.func.id.lower() if isinstance(call.func, ast.Name) else ""]
    given = {item.arg or "": _called(item.value, WEIGHTS) for item in call.keywords}
    return kind(*(_called(value, WEIGHTS) for value in call.args), **given)


def harm(policy: Policy, rule: str) -> str:
    """What is known to go wrong with a rule (by name) under this policy, and what helps; "": nothing.

    A small GPT lost 0.57 nats to AdamW at 1e-3 with gradients 4 updates old, and neither weights nor DC-ASGD gave them
    back: moments mix what was computed on different parameters. Simulated; ours (issue 5 of this repository).
    """
    stale = isinstance(policy, Async | Decoupled) or (isinstance(policy, Bounded) and policy.staleness > 0)
    if not stale or rule not in MOMENTS:
        return ""
    return (
        f"{in_words(policy.spec)} with {MOMENTS[rule]} is known to harm: its moments mix gradients that were computed "
        f"on different parameters. Use shoal.Sync(quorum=0.9), which waits for no straggler, shoal.LocalSteps(...), or "
        f"shoal.SGD; `shoal status` shows how old contributions are"
    )
