"""Registries: who leads a job, and where everything is, behind one contract (see base), told apart by scheme."""

from __future__ import annotations

import os

from shoal.errors import ConfigurationError
from shoal.registry.base import ANSWER_MS, LEASE_MS, VALUE_BYTES_MAX, Leader, Leadership, Registry, checked_job
from shoal.registry.url import FILE, parsed_directory, parsed_etcd
from shoal.vocabulary import JOB_DEFAULT


def open(  # noqa: A001 - it is read as registry.open
    url: str, job: str = JOB_DEFAULT, lease_ms: int = LEASE_MS, answer_ms: int = ANSWER_MS
) -> Registry:
    """The registry of `job` at "file:///directory", "etcd://host:port,host:port" or "etcds://..." (TLS).

    lease_ms: a leader that etcd has not heard for so long is replaced (whole seconds, etcd rounds up).
    answer_ms: for one question. Nothing is connected yet: a service that is not there is found by the
    first question. Raises ConfigurationError for anything that cannot work, a missing extra among it.
    """
    checked_job(job)
    if lease_ms <= 0 or answer_ms <= 0:
        raise ConfigurationError(f"lease_ms={lease_ms} and answer_ms={answer_ms} of a registry must be positive")
    if url.startswith(f"{FILE}://"):
        from shoal.registry.embedded import EmbeddedRegistry

        return EmbeddedRegistry(parsed_directory(url), job)
    address = parsed_etcd(url)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines on stderr: errors here carry what they say
    try:
        from shoal.registry.etcd import EtcdRegistry
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{address.name} needs {error.name}, which is not installed: pip install 'shoal[etcd]'"
        ) from None
    return EtcdRegistry(address, job, lease_ms, answer_ms)


__all__ = ["VALUE_BYTES_MAX", "Leader", "Leadership", "Registry", "open"]
