"""Where Redis is, as an operator writes it: one server, behind Sentinel, or a cluster."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Kind = Literal["server", "sentinel", "cluster"]
HostPort = tuple[str, int]

_SCHEMES: Final[dict[str, tuple[Kind, bool]]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("server", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_DEFAULT_PORTS: Final[dict[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"}
)
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to log in with; both ``None`` means not at all."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed URL. Timeouts and pool sizes are no part of it: they are set in one place only."""

    kind: Kind
    hosts: tuple[HostPort, ...] = ()
    path: str | None = None
    """Of a unix socket; then there are no hosts."""
    db: int = 0
    service: str = ""
    """The name of the master that the sentinels watch."""
    login: Credentials = Credentials()
    sentinel_login: Credentials = Credentials()
    tls: bool = False
    tls_options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Fit for logs: no secret in it."""
        if self.path is not None:
            return f"unix://{self.path}"
        where = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.kind} {where}" + (f" {self.service}" if self.service else "")

    def tls_context(self) -> ssl.SSLContext | None:
        """Built once: loading the system's certificates takes tens of milliseconds."""
        if not self.tls:
            return None
        options = dict(self.tls_options)
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
        if options.get("ssl_check_hostname") == "false":
            context.check_hostname = False
        if options.get("ssl_cert_reqs") == "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def parse_address(text: str, *, password: str | None = None) -> RedisAddress:
    """``host:port`` or a URL; raises ``ValueError`` that says what is wrong, without the password.

    ``redis://[user:password@]host[:port][/db]``, ``rediss://`` with TLS, ``unix:///path[?db=1]``,
    ``redis+sentinel://host,host/master[/db]``, ``redis+cluster://host,host`` and both of those with
    ``rediss+``. ``password`` stands in where the URL has none.
    """
    url = urlsplit(text if "://" in text else f"redis://{text}")
    if url.scheme not in _SCHEMES:
        raise ValueError(f"unknown scheme '{url.scheme}'; known are {', '.join(_SCHEMES)}")
    kind, tls = _SCHEMES[url.scheme]
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    login, hosts = _authority(url, kind)
    if login.password is None and password is not None:
        login = Credentials(login.username, password)
    path, service, db = _path(url, kind, options)
    _check(kind, hosts=hosts, path=path, db=db, service=service)
    _check_options(options, kind, tls=tls)
    return RedisAddress(
        kind=kind,
        hosts=hosts,
        path=path,
        db=db,
        service=service,
        login=login,
        sentinel_login=Credentials(
            options.get("sentinel_username"), options.get("sentinel_password")
        ),
        tls=tls,
        tls_options=tuple((name, options[name]) for name in sorted(_TLS_OPTIONS & set(options))),
    )


def _authority(url: SplitResult, kind: Kind) -> tuple[Credentials, tuple[HostPort, ...]]:
    userinfo, _, hosts = url.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    login = Credentials(unquote(username) or None, unquote(password) or None)
    return login, tuple(_host(part, kind) for part in hosts.split(",") if part)


def _host(part: str, kind: Kind) -> HostPort:
    host, colon, port = part.rpartition(":")
    if not colon or part.endswith("]"):
        host, port = part, str(_DEFAULT_PORTS[kind])
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"'{part}' has no valid port")
    return host.strip("[]") or "localhost", int(port)


def _path(url: SplitResult, kind: Kind, options: dict[str, str]) -> tuple[str | None, str, int]:
    if url.scheme == "unix":
        return unquote(url.path), "", _db(options.pop("db", ""))
    first, _, rest = url.path.lstrip("/").partition("/")
    if kind == "sentinel":
        return None, unquote(first), _db(rest)
    return None, "", _db(first)


def _db(text: str) -> int:
    if text and not text.isdigit():
        raise ValueError(f"'{text}' is no database number")
    return int(text or 0)


def _check(
    kind: Kind, *, hosts: tuple[HostPort, ...], path: str | None, db: int, service: str
) -> None:
    if path == "":
        raise ValueError("a unix URL needs a path: unix:///path/to/redis.sock")
    if path is None and not hosts:
        raise ValueError("no host")
    if kind == "server" and len(hosts) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    if kind == "sentinel" and not service:
        raise ValueError("a sentinel URL names the master: redis+sentinel://host,host/master")
    if kind == "cluster" and db:
        raise ValueError("a cluster has no database numbers")


def _check_options(options: dict[str, str], kind: Kind, *, tls: bool) -> None:
    known = (_TLS_OPTIONS if tls else frozenset()) | (
        _SENTINEL_OPTIONS if kind == "sentinel" else frozenset()
    )
    unknown = sorted(set(options) - known)
    if unknown:
        # Above all socket_timeout and its like: the promises on latency rest on our own values.
        raise ValueError(f"unknown option {', '.join(unknown)}")
    if options.get("ssl_check_hostname", "true") not in ("true", "false"):
        raise ValueError("ssl_check_hostname is true or false")
    if options.get("ssl_cert_reqs", "required") not in ("required", "none"):
        raise ValueError("ssl_cert_reqs is required or none")
