"""The keys of a job in etcd and the parts of transactions over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from aetcd import rpc

from shoal.registry import base
from shoal.registry.base import Leader


@dataclass(frozen=True)
class Place:
    """Where a job's entries lie. name: of the registry, for people."""

    name: str
    job: str

    @property
    def leader_key(self) -> bytes:
        return f"/shoal/{self.job}/leader".encode()

    def value_key(self, key: str) -> bytes:
        return f"/shoal/{self.job}/values/{key}".encode()

    def decoded(self, entry: Any) -> Leader:
        """The leader's entry as etcd returned it (RegistryError if Shoal did not write it)."""
        leader = base.decoded(entry.value, f"{self.leader_key.decode()} in {self.name}")
        return msgspec.structs.replace(leader, epoch=entry.create_revision)


def created_at(key: bytes, revision: int) -> Any:
    """Holds while the key is the one that was created at this revision; 0: while there is none."""
    return rpc.Compare(key=key, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=revision)


def unchanged_since(key: bytes, revision: int) -> Any:
    """Holds while the key was last written at this revision; 0: while there is none."""
    return rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision)


def put(key: bytes, value: bytes, lease: int = 0) -> Any:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def get(key: bytes) -> Any:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key))
