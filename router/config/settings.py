"""The environment, read once into a frozen value. Nobody else touches ``os.environ``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from router.config.schema.base_url import normalize_base_url

T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_PEPPER_MIN_BYTES = 32
_TOKEN_MIN_CHARS = 16

EMBEDDED_REDIS: Final = "embedded://"
"""Stands for a private server that the router starts itself."""

REDIS_SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
_USD_SHAPE: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_MAX_USD: Final = 9_000_000


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

    # Limits and budgets.
    redis_addr: str = EMBEDDED_REDIS
    redis_password: str | None = field(default=None, repr=False)
    redis_timeout_s: float = 0.05
    rate_limit_rps: int = 100
    rate_limit_burst: int = 200
    rate_limit_fallback: str = "local"
    instances: int = 1
    reservation: str = "capped"
    reservation_cap_nanos: int = 100_000_000
    reservation_cap_tokens: int = 4096
    reservation_floor_nanos: int = 1_000
    reservation_floor_tokens: int = 1
    unknown_price: str = "floor"
    lease_s: float = 900.0
    budget_fallback: str = "closed"
    budget_service_endpoint: str | None = None
    budget_service_timeout_s: float = 2.0
    budget_service_token: str | None = field(default=None, repr=False)
    budget_service_bind: Address = Address("127.0.0.1", 8082)
    idempotency_keep_s: float = 86_400.0
    idempotency_max_bytes: int = 1024 * 1024
    idempotency_fallback: str = "open"

    @property
    def state_dir(self) -> Path:
        """Where the LMDB configuration store lives."""
        return self.data_dir / "state"

    @property
    def spool_dir(self) -> Path:
        """Where workers append the records of their calls."""
        return self.data_dir / "spool"

    @property
    def redis_dir(self) -> Path:
        """Where an embedded Redis keeps its data."""
        return self.data_dir / "redis"

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
        # Limits and budgets.
        redis_addr=reader.take("RATE_LIMIT_REDIS_ADDR", default.redis_addr, _redis_addr),
        redis_password=reader.take("RATE_LIMIT_REDIS_PASSWORD", None, str),
        redis_timeout_s=reader.take(
            "ROUTER_REDIS_TIMEOUT", default.redis_timeout_s, _seconds(0.001, 10)
        ),
        rate_limit_rps=reader.take(
            "RATE_LIMIT_DEFAULT_RPS", default.rate_limit_rps, _int(0, 1_000_000)
        ),
        rate_limit_burst=reader.take(
            "RATE_LIMIT_BURST_SIZE", default.rate_limit_burst, _int(0, 9 * 10**9)
        ),
        rate_limit_fallback=reader.take(
            "ROUTER_RATE_LIMIT_FALLBACK",
            default.rate_limit_fallback,
            _one_of("local", "open", "closed"),
        ),
        instances=reader.take("ROUTER_INSTANCES", default.instances, _int(1, 10_000)),
        reservation=reader.take(
            "ROUTER_RESERVATION", default.reservation, _one_of("worst_case", "capped", "floor")
        ),
        reservation_cap_nanos=reader.take(
            "ROUTER_RESERVATION_CAP_USD", default.reservation_cap_nanos, _usd
        ),
        reservation_cap_tokens=reader.take(
            "ROUTER_RESERVATION_CAP_TOKENS", default.reservation_cap_tokens, _int(1, 9 * 10**9)
        ),
        reservation_floor_nanos=reader.take(
            "ROUTER_RESERVATION_FLOOR_USD", default.reservation_floor_nanos, _usd
        ),
        reservation_floor_tokens=reader.take(
            "ROUTER_RESERVATION_FLOOR_TOKENS", default.reservation_floor_tokens, _int(1, 9 * 10**9)
        ),
        unknown_price=reader.take(
            "ROUTER_UNKNOWN_PRICE", default.unknown_price, _one_of("floor", "refuse")
        ),
        lease_s=reader.take("ROUTER_LEASE", default.lease_s, _seconds(1, 86_400)),
        budget_fallback=reader.take(
            "ROUTER_BUDGET_FALLBACK", default.budget_fallback, _one_of("closed", "open")
        ),
        budget_service_endpoint=reader.take("BUDGET_SERVICE_ENDPOINT", None, _endpoint),
        budget_service_timeout_s=reader.take(
            "BUDGET_SERVICE_TIMEOUT", default.budget_service_timeout_s, _seconds(0.001, 60)
        ),
        budget_service_token=reader.take("BUDGET_SERVICE_TOKEN", None, _token),
        budget_service_bind=reader.take(
            "BUDGET_SERVICE_BIND", default.budget_service_bind, _address
        ),
        idempotency_keep_s=reader.take(
            "ROUTER_IDEMPOTENCY_KEEP", default.idempotency_keep_s, _seconds(1, 30 * 86_400)
        ),
        idempotency_max_bytes=reader.take(
            "ROUTER_IDEMPOTENCY_MAX_BYTES", default.idempotency_max_bytes, _int(0, 2**26)
        ),
        idempotency_fallback=reader.take(
            "ROUTER_IDEMPOTENCY_FALLBACK", default.idempotency_fallback, _one_of("open", "closed")
        ),
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
        for suffix, scale in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
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


def _redis_addr(raw: str) -> str:
    """Only the scheme: the rest is for whoever connects to understand.

    Never repeats the value: it may hold a password.
    """
    scheme, separator, _ = raw.partition("://")
    known = raw == EMBEDDED_REDIS or scheme in REDIS_SCHEMES
    if (separator and not known) or not raw.isprintable() or " " in raw:
        schemes = ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES)
        raise ValueError(f"expected HOST:PORT, {EMBEDDED_REDIS} or a URL with one of {schemes}")
    return raw


def _endpoint(raw: str) -> str:
    if "@" in raw:  # not to be repeated
        raise ValueError("must not hold a user name or password; set BUDGET_SERVICE_TOKEN")
    return normalize_base_url(raw)


def _token(raw: str) -> str:
    if len(raw) < _TOKEN_MIN_CHARS or not raw.isascii() or not raw.isprintable() or " " in raw:
        raise ValueError(f"must have at least {_TOKEN_MIN_CHARS} printable ASCII characters")
    return raw


def _usd(raw: str) -> int:
    """Decimal USD → nano-USD."""
    if _USD_SHAPE.fullmatch(raw) is None or Decimal(raw) > _MAX_USD:
        raise ValueError(f"expected USD such as 0.10, at most {_MAX_USD}, got {raw!r}")
    return int(Decimal(raw).scaleb(9))


def _pepper(raw: str) -> str:
    if len(raw.encode()) < _PEPPER_MIN_BYTES:
        raise ValueError(f"must have at least {_PEPPER_MIN_BYTES} bytes")
    return raw
