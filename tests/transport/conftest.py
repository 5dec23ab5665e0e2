"""Every transport in turn."""

from __future__ import annotations

import pytest

from .network import NETWORKS, Network


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.fixture(params=[name for name in NETWORKS if name.startswith("tcp")])
def tcp(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]
