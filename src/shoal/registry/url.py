"""Where a registry is, read from its URL; what cannot work is refused here, before anything is opened.

file:///directory
etcd://[user[:password]@]host[:port][,host[:port]...][?password_file=PATH]
etcds://...[?ca=PATH][&cert=PATH&key=PATH]          the same over TLS
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from shoal.errors import ConfigurationError

FILE, ETCD, ETCDS = "file", "etcd", "etcds"
PORT = 2379  # etcd's own
ENDPOINTS_MAX = 16
OPTIONS = {ETCD: {"password_file"}, ETCDS: {"password_file", "ca", "cert", "key"}}

_ENDPOINT = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class EtcdAddress:
    """An etcd cluster and how to be let in. certificate and key: PEM, together or neither; ca None: the system's."""

    endpoints: tuple[str, ...]  # "host:port"
    tls: bool = False
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """For people: no password in it."""
        return f"etcd at {','.join(self.endpoints)}"


def parsed_directory(url: str) -> Path:
    """The directory of "file:///directory" (ConfigurationError if that is not its form)."""
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ConfigurationError(f"{url!r} names no directory of this machine; write file:///absolute/path")
    return Path(unquote(parts.path))


def parsed_etcd(url: str) -> EtcdAddress:
    """The cluster that an etcd:// or etcds:// URL names, its files read (ConfigurationError for any other)."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in OPTIONS:
        raise ConfigurationError(
            f"{_harmless(url)!r} is no registry; it must start with file://, etcd:// or etcds:// (etcd over TLS)"
        )
    rest, _, query = rest.partition("?")
    credentials, _, hosts = rest.rpartition("@")
    user, colon, password = (unquote(part) for part in credentials.partition(":"))
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - OPTIONS[scheme])
    if unknown:
        raise ConfigurationError(
            f"{scheme}:// knows no option {', '.join(unknown)}; it has {', '.join(sorted(OPTIONS[scheme]))}"
        )
    if "password_file" in options:
        if colon:
            raise ConfigurationError(f"{_harmless(url)!r} has a password and a password_file: leave one out")
        password = _file(options["password_file"]).decode(errors="replace").rstrip("\r\n")
    if bool(user) != bool(password):
        raise ConfigurationError(f"{_harmless(url)!r} needs both, a user and a password, or neither")
    if ("cert" in options) != ("key" in options):
        raise ConfigurationError(f"{_harmless(url)!r} needs both, cert= and key=, or neither")
    return EtcdAddress(
        _endpoints(hosts.rstrip("/"), url),
        tls=scheme == ETCDS,
        ca=_file(options["ca"]) if "ca" in options else None,
        certificate=_file(options["cert"]) if "cert" in options else None,
        key=_file(options["key"]) if "key" in options else None,
        user=user,
        password=password,
    )


def _endpoints(hosts: str, url: str) -> tuple[str, ...]:
    found = []
    for host in hosts.split(","):
        match = _ENDPOINT.fullmatch(host)
        port = int(match["port"] or PORT) if match else 0
        if match is None or not 0 < port < 65_536:
            raise ConfigurationError(f"{host!r} in {_harmless(url)!r} is no member of an etcd cluster; write host:port")
        found.append(f"{match['host']}:{port}")
    if len(found) > ENDPOINTS_MAX:
        raise ConfigurationError(f"{_harmless(url)!r} names {len(found)} members; at most {ENDPOINTS_MAX}")
    return tuple(found)


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path!r}, which the registry's URL names: {error.strerror}") from None


def _harmless(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"//.*@", "//***@", url)
