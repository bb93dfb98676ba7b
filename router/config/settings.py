"""The environment, read once into a frozen value. Nobody else touches ``os.environ``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_PEPPER_MIN_BYTES = 32


class SettingsError(Exception):
    """The environment is wrong; ``problems`` holds one line for each variable at fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("invalid environment:\n" + "\n".join(f"  {line}" for line in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can set. Every field names its variable in ``docs/configuration.md``."""

    bind: Address = Address("127.0.0.1", 8080)
    ops_bind: Address = Address("127.0.0.1", 8081)
    data_dir: Path = Path("data")
    metrics_dir: Path | None = None
    workers: int = 2
    worker_connections: int = 1000
    max_requests: int = 0
    keepalive_s: int = 8
    drain_timeout_s: int = 30
    demo: bool = False
    key_pepper: str | None = None
    max_body_bytes: int = 10 * 1024 * 1024
    max_reply_bytes: int = 64 * 1024 * 1024
    body_timeout_s: float = 8.0
    client_write_timeout_s: float = 30.0
    backend_pool_size: int = 256
    backend_idle_s: float = 4.0
    on_client_abort: str = "abort"
    trusted_proxies: int = 0
    signature_tolerance_s: int = 300
    log_level: str = "INFO"
    build: str = "dev"
    spool_mode: str = "fast"
    spool_max_bytes: int = 2 * 1024**3
    record_store_url: str = ""
    query_timeout_s: float = 10.0
    audit_retention_days: int = 90
    agent: str = "embedded"
    agent_drain_s: float = 10.0
    kafka_brokers: tuple[str, ...] = ()
    kafka_usage_topic: str = "usage.records.v1"
    kafka_audit_topic: str = "audit.router"

    @property
    def state_dir(self) -> Path:
        """Where the LMDB configuration store lives."""
        return self.data_dir / "state"

    @property
    def spool_dir(self) -> Path:
        """Where workers append the records of their calls."""
        return self.data_dir / "spool"

    @property
    def store_url(self) -> str:
        """The record store: what is set, else a SQLite file in the data directory."""
        return self.record_store_url or f"sqlite:///{self.data_dir.absolute() / 'records.db'}"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read every variable; raises :class:`SettingsError` that names all the wrong ones at once."""
    reader = _Reader(os.environ if environ is None else environ)
    default = Settings()
    settings = Settings(
        bind=reader.take("ROUTER_BIND", default.bind, _address),
        ops_bind=reader.take("ROUTER_OPS_BIND", default.ops_bind, _address),
        data_dir=reader.take("ROUTER_DATA_DIR", default.data_dir, Path),
        metrics_dir=reader.take("PROMETHEUS_MULTIPROC_DIR", None, Path),
        workers=reader.take("WEB_CONCURRENCY", default.workers, _int(1, 256)),
        worker_connections=reader.take(
            "ROUTER_WORKER_CONNECTIONS", default.worker_connections, _int(1, 100_000)
        ),
        max_requests=reader.take("ROUTER_MAX_REQUESTS", default.max_requests, _int(0, 10**9)),
        keepalive_s=reader.take("ROUTER_KEEPALIVE", default.keepalive_s, _int(1, 600)),
        drain_timeout_s=reader.take("ROUTER_DRAIN_TIMEOUT", default.drain_timeout_s, _int(5, 3600)),
        demo=reader.take("ROUTER_DEMO", default.demo, _flag),
        key_pepper=reader.take("ROUTER_KEY_PEPPER", None, _pepper),
        max_body_bytes=reader.take(
            "ROUTER_MAX_BODY_BYTES", default.max_body_bytes, _int(1024, 2**30)
        ),
        max_reply_bytes=reader.take(
            "ROUTER_MAX_REPLY_BYTES", default.max_reply_bytes, _int(1024, 2**31)
        ),
        body_timeout_s=reader.take(
            "ROUTER_BODY_TIMEOUT", default.body_timeout_s, _seconds(0.1, 600)
        ),
        client_write_timeout_s=reader.take(
            "ROUTER_CLIENT_WRITE_TIMEOUT", default.client_write_timeout_s, _seconds(0.1, 3600)
        ),
        backend_pool_size=reader.take(
            "ROUTER_BACKEND_POOL_SIZE", default.backend_pool_size, _int(1, 100_000)
        ),
        backend_idle_s=reader.take("ROUTER_BACKEND_IDLE", default.backend_idle_s, _seconds(0, 600)),
        on_client_abort=reader.take(
            "ROUTER_ON_CLIENT_ABORT", default.on_client_abort, _one_of("abort", "drain")
        ),
        trusted_proxies=reader.take("ROUTER_TRUSTED_PROXIES", default.trusted_proxies, _int(0, 10)),
        signature_tolerance_s=reader.take(
            "ROUTER_SIGNATURE_TOLERANCE", default.signature_tolerance_s, _int(1, 3600)
        ),
        log_level=reader.take("ROUTER_LOG_LEVEL", default.log_level, _one_of(*_LOG_LEVELS)),
        build=reader.take("ROUTER_BUILD", default.build, str),
        spool_mode=reader.take("ROUTER_SPOOL_MODE", default.spool_mode, _one_of("fast", "durable")),
        spool_max_bytes=reader.take(
            "ROUTER_SPOOL_MAX_BYTES", default.spool_max_bytes, _int(1024**2, 2**50)
        ),
        record_store_url=reader.take("ROUTER_RECORD_STORE", default.record_store_url, _store_url),
        query_timeout_s=reader.take(
            "ROUTER_QUERY_TIMEOUT", default.query_timeout_s, _seconds(0.1, 600)
        ),
        audit_retention_days=reader.take(
            "ROUTER_AUDIT_RETENTION_DAYS", default.audit_retention_days, _int(1, 36_500)
        ),
        agent=reader.take("ROUTER_AGENT", default.agent, _one_of("embedded", "external")),
        agent_drain_s=reader.take("ROUTER_AGENT_DRAIN", default.agent_drain_s, _seconds(0, 600)),
        kafka_brokers=reader.take("KAFKA_BROKERS", default.kafka_brokers, _brokers),
        kafka_usage_topic=reader.take("KAFKA_USAGE_TOPIC", default.kafka_usage_topic, str),
        kafka_audit_topic=reader.take("KAFKA_AUDIT_TOPIC", default.kafka_audit_topic, str),
    )
    if settings.bind.port == settings.ops_bind.port:
        reader.problems.append("ROUTER_OPS_BIND: must use another port than ROUTER_BIND")
    if reader.problems:
        raise SettingsError(reader.problems)
    return settings


def export_metrics_dir(path: Path) -> None:
    """Tell the metrics library, in this process and its children, where its files are."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(path)


def child_environment(**changes: str) -> dict[str, str]:
    """A copy of this process's environment with ``changes``, for a process that we start."""
    return {**os.environ, **changes}


def resolve_credential(reference: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Read the secret behind ``env:NAME`` or ``file:/path``; ``None`` when it is not there."""
    scheme, _, place = reference.partition(":")
    if scheme == "env":
        return (os.environ if environ is None else environ).get(place) or None
    try:
        return Path(place).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


class _Reader:
    """Takes variables one by one and remembers what was wrong instead of stopping at it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def take(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        raw = self._environ.get(name)
        if raw is None or raw.strip() == "":
            return default
        try:
            return parse(raw.strip())
        except ValueError as error:
            self.problems.append(f"{name}: {error}")
            return default


def _address(raw: str) -> Address:
    host, separator, port = raw.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ValueError(f"expected HOST:PORT, got {raw!r}")
    return Address(host.strip("[]") or "0.0.0.0", int(port))


def _flag(raw: str) -> bool:
    lowered = raw.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(f"expected true or false, got {raw!r}")


def _int(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        try:
            value = int(raw)
        except ValueError:
            raise ValueError(f"expected a whole number, got {raw!r}") from None
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}, got {value}")
        return value

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        number, factor = raw, 1.0
        for suffix, scale in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
            if raw.endswith(suffix):
                number, factor = raw[: -len(suffix)], scale
                break
        try:
            value = float(number) * factor
        except ValueError:
            raise ValueError(f"expected a duration such as 2s or 250ms, got {raw!r}") from None
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g} seconds, got {value:g}")
        return value

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        for choice in choices:
            if raw.lower() == choice.lower():
                return choice
        raise ValueError(f"must be one of {', '.join(choices)}, got {raw!r}")

    return parse


def _store_url(raw: str) -> str:
    if not raw.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
        raise ValueError("expected sqlite:///PATH or postgresql://USER@HOST/DATABASE")
    if not _is_sound_url(raw):  # not repeated: it may hold a password
        raise ValueError(
            "is no URL: what are host, port and database? A password is percent-encoded"
        )
    if raw.startswith("postgresql://"):
        return raw.replace("postgresql://", "postgresql+psycopg://", 1)
    return raw


def _is_sound_url(raw: str) -> bool:
    try:
        parts = urlsplit(raw)
        port = parts.port
    except ValueError:
        return False
    return parts.path not in ("", "/") and parts.netloc.count("@") <= 1 and port != 0


def _brokers(raw: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in raw.split(",") if part.strip())
    for broker in found:
        _address(broker)
    return found


def _pepper(raw: str) -> str:
    if len(raw.encode()) < _PEPPER_MIN_BYTES:
        raise ValueError(f"must have at least {_PEPPER_MIN_BYTES} bytes")
    return raw
