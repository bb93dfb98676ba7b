"""The environment, read once into a frozen value. No other module uses ``os.environ``."""

# ruff: noqa: RUF009 - `_env` makes a dataclass field

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from router.config.schema.base_url import normalize_base_url

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
_ANY_CHILD: Final = frozenset(
    {
        "HOME",
        "LANG",
        "LD_LIBRARY_PATH",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "VIRTUAL_ENV",
    }
)
_ANY_CHILD_PREFIXES: Final = ("LC_", "PYTHON")
# Read by `routerctl` itself, as an option of the commands that talk to Kafka.
_COMMAND_VARIABLES: Final = frozenset({"KAFKA_API_VERSION"})
# libpq reads the password file and certificates from them.
_STORE_PREFIXES: Final = ("PG", "KRB5")

_USD_SHAPE: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_MAX_USD: Final = 9_000_000


class SettingsError(Exception):
    """The environment is wrong; ``problems`` has one line for each wrong variable."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("invalid environment:\n" + "\n".join(f"  {line}" for line in problems))
        self.problems = problems


_SEGMENTS: Final = 8
_SMALLEST_SEGMENT_BYTES: Final = 32 * 1024
"""About a dozen records; for less, a file and its syncs are not worth their cost."""
_LARGEST_SEGMENT_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


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
    """Checks the scheme only; connecting checks the rest.

    The message never repeats the value, which may contain a password.
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


def _env(name: str, parse: Callable[[str], Any], default: Any, *, secret: bool = False) -> Any:
    """A field that is set by the environment variable ``name``."""
    metadata = {"variable": name, "parse": parse}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can set. ``docs/configuration.md`` says what each variable means."""

    bind: Address = _env("ROUTER_BIND", _address, Address("127.0.0.1", 8080))
    ops_bind: Address = _env("ROUTER_OPS_BIND", _address, Address("127.0.0.1", 8081))
    data_dir: Path = _env("ROUTER_DATA_DIR", Path, Path("data"))
    metrics_dir: Path | None = _env("PROMETHEUS_MULTIPROC_DIR", Path, None)
    workers: int = _env("WEB_CONCURRENCY", _int(1, 256), 2)
    worker_connections: int = _env("ROUTER_WORKER_CONNECTIONS", _int(1, 100_000), 1000)
    max_requests: int = _env("ROUTER_MAX_REQUESTS", _int(0, 10**9), 0)
    keepalive_s: int = _env("ROUTER_KEEPALIVE", _int(1, 600), 8)
    drain_timeout_s: int = _env("ROUTER_DRAIN_TIMEOUT", _int(5, 3600), 30)
    demo: bool = _env("ROUTER_DEMO", _flag, False)
    key_pepper: str | None = _env("ROUTER_KEY_PEPPER", _pepper, None, secret=True)
    max_body_bytes: int = _env("ROUTER_MAX_BODY_BYTES", _int(1024, 2**30), 10 * 1024 * 1024)
    max_body_elements: int = _env("ROUTER_MAX_BODY_ELEMENTS", _int(1000, 10**7), 100_000)
    max_embedding_elements: int = _env("ROUTER_MAX_EMBEDDING_ELEMENTS", _int(1000, 10**7), 400_000)
    max_reply_bytes: int = _env("ROUTER_MAX_REPLY_BYTES", _int(1024, 2**31), 64 * 1024 * 1024)
    body_timeout_s: float = _env("ROUTER_BODY_TIMEOUT", _seconds(0.1, 600), 8.0)
    client_write_timeout_s: float = _env("ROUTER_CLIENT_WRITE_TIMEOUT", _seconds(0.1, 3600), 30.0)
    backend_pool_size: int = _env("ROUTER_BACKEND_POOL_SIZE", _int(1, 100_000), 256)
    backend_idle_s: float = _env("ROUTER_BACKEND_IDLE", _seconds(0, 600), 4.0)
    on_client_abort: str = _env("ROUTER_ON_CLIENT_ABORT", _one_of("abort", "drain"), "abort")
    trusted_proxies: int = _env("ROUTER_TRUSTED_PROXIES", _int(0, 10), 0)
    signature_tolerance_s: int = _env("ROUTER_SIGNATURE_TOLERANCE", _int(1, 3600), 300)
    nonces_per_key: int = _env("ROUTER_NONCES_PER_KEY", _int(1, 10**9), 200_000)
    log_level: str = _env("ROUTER_LOG_LEVEL", _one_of(*_LOG_LEVELS), "INFO")
    build: str = _env("ROUTER_BUILD", str, "dev")
    spool_mode: str = _env("ROUTER_SPOOL_MODE", _one_of("fast", "durable"), "fast")
    spool_max_bytes: int = _env("ROUTER_SPOOL_MAX_BYTES", _int(1024**2, 2**50), 2 * 1024**3)
    record_store_url: str = _env("ROUTER_RECORD_STORE", _store_url, "")
    query_timeout_s: float = _env("ROUTER_QUERY_TIMEOUT", _seconds(0.1, 600), 10.0)
    audit_retention_days: int = _env("ROUTER_AUDIT_RETENTION_DAYS", _int(1, 36_500), 90)
    agent: str = _env("ROUTER_AGENT", _one_of("embedded", "external"), "embedded")
    agent_drain_s: float = _env("ROUTER_AGENT_DRAIN", _seconds(0, 600), 10.0)
    kafka_brokers: tuple[str, ...] = _env("KAFKA_BROKERS", _brokers, ())
    kafka_usage_topic: str = _env("KAFKA_USAGE_TOPIC", str, "usage.records.v1")
    kafka_audit_topic: str = _env("KAFKA_AUDIT_TOPIC", str, "audit.router")

    # Limits and budgets.
    redis_addr: str = _env("RATE_LIMIT_REDIS_ADDR", _redis_addr, EMBEDDED_REDIS)
    redis_password: str | None = _env("RATE_LIMIT_REDIS_PASSWORD", str, None, secret=True)
    redis_timeout_s: float = _env("ROUTER_REDIS_TIMEOUT", _seconds(0.001, 10), 0.05)
    rate_limit_rps: int = _env("RATE_LIMIT_DEFAULT_RPS", _int(0, 1_000_000), 100)
    rate_limit_burst: int = _env("RATE_LIMIT_BURST_SIZE", _int(0, 9 * 10**9), 200)
    rate_limit_fallback: str = _env(
        "ROUTER_RATE_LIMIT_FALLBACK", _one_of("local", "open", "closed"), "local"
    )
    instances: int = _env("ROUTER_INSTANCES", _int(1, 10_000), 1)
    reservation: str = _env(
        "ROUTER_RESERVATION", _one_of("worst_case", "capped", "floor"), "capped"
    )
    reservation_cap_nanos: int = _env("ROUTER_RESERVATION_CAP_USD", _usd, 100_000_000)
    reservation_cap_tokens: int = _env("ROUTER_RESERVATION_CAP_TOKENS", _int(1, 9 * 10**9), 4096)
    reservation_floor_nanos: int = _env("ROUTER_RESERVATION_FLOOR_USD", _usd, 1_000)
    reservation_floor_tokens: int = _env("ROUTER_RESERVATION_FLOOR_TOKENS", _int(1, 9 * 10**9), 1)
    unknown_price: str = _env("ROUTER_UNKNOWN_PRICE", _one_of("floor", "refuse"), "floor")
    token_vocabulary: Path | None = _env("ROUTER_TOKEN_VOCABULARY", Path, None)
    abandoned: str = _env("ROUTER_ABANDONED", _one_of("estimate", "reserved", "free"), "estimate")
    lease_s: float = _env("ROUTER_LEASE", _seconds(1, 86_400), 900.0)
    budget_wait_s: float = _env("ROUTER_BUDGET_WAIT", _seconds(0, 5), 0.05)
    budget_fallback: str = _env("ROUTER_BUDGET_FALLBACK", _one_of("closed", "open"), "closed")
    budget_service_endpoint: str | None = _env("BUDGET_SERVICE_ENDPOINT", _endpoint, None)
    budget_service_timeout_s: float = _env("BUDGET_SERVICE_TIMEOUT", _seconds(0.001, 60), 2.0)
    budget_service_mode: str = _env(
        "BUDGET_SERVICE_MODE", _one_of("auto", "reserve", "check"), "auto"
    )
    budget_service_token: str | None = _env("BUDGET_SERVICE_TOKEN", _token, None, secret=True)
    budget_service_bind: Address = _env("BUDGET_SERVICE_BIND", _address, Address("127.0.0.1", 8082))
    idempotency_keep_s: float = _env("ROUTER_IDEMPOTENCY_KEEP", _seconds(1, 30 * 86_400), 86_400.0)
    idempotency_max_bytes: int = _env("ROUTER_IDEMPOTENCY_MAX_BYTES", _int(0, 2**26), 1024 * 1024)
    idempotency_fallback: str = _env(
        "ROUTER_IDEMPOTENCY_FALLBACK", _one_of("open", "closed"), "open"
    )

    @property
    def state_dir(self) -> Path:
        """Where the LMDB configuration store lives."""
        return self.data_dir / "state"

    @property
    def spool_dir(self) -> Path:
        """Where workers append the records of their calls."""
        return self.data_dir / "spool"

    @property
    def spool_segment_bytes(self) -> int:
        """When a worker goes on in another file of its spool. What is shipped goes only with whole
        files, so the last ones of all workers are an eighth of the limit together."""
        return min(_LARGEST_SEGMENT_BYTES, self.spool_max_bytes // (_SEGMENTS * self.workers))

    @property
    def unsettled_dir(self) -> Path:
        """Where workers append the leases that they could not settle."""
        return self.data_dir / "unsettled"

    @property
    def unsent_dir(self) -> Path:
        """Where workers note what calls reserve that they have not sent yet."""
        return self.data_dir / "unsent"

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
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    problems = []
    for each in fields(Settings):
        variable, parse = each.metadata["variable"], each.metadata["parse"]
        raw = environ.get(variable, "").strip()
        values[each.name] = each.default
        try:
            if raw:
                values[each.name] = parse(raw)
        except ValueError as error:
            problems.append(f"{variable}: {error}")
    if values["bind"].port == values["ops_bind"].port:
        problems.append("ROUTER_OPS_BIND: must use another port than ROUTER_BIND")
    problems += _spool_problems(values["spool_max_bytes"], values["workers"])
    if problems:
        raise SettingsError(problems)
    return Settings(**values)


def _spool_problems(max_bytes: int, workers: int) -> list[str]:
    """Why so many workers cannot share a spool of this size, if they cannot."""
    each = _SEGMENTS * _SMALLEST_SEGMENT_BYTES
    if workers * each <= max_bytes:
        return []
    return [
        f"ROUTER_SPOOL_MAX_BYTES: {max_bytes} bytes are too few for {workers} workers: each needs "
        f"{each} ({_SEGMENTS} files of {_SMALLEST_SEGMENT_BYTES}), {workers * each} together"
    ]


def export_metrics_dir(path: Path) -> None:
    """Set the directory of the metrics library for this process and its children."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(path)


def child_environment(*, settings: bool = False) -> dict[str, str]:
    """What a child process needs of this one's environment: how to run Python, and nothing secret.

    With ``settings`` also what :class:`Settings` reads and what the PostgreSQL library reads. What
    else there is, such as the credentials of backends, stays here.
    """
    names, prefixes = set(_ANY_CHILD), list(_ANY_CHILD_PREFIXES)
    if settings:
        names |= {each.metadata["variable"] for each in fields(Settings)} | _COMMAND_VARIABLES
        prefixes += _STORE_PREFIXES
    return {
        name: value
        for name, value in os.environ.items()
        if name in names or name.startswith(tuple(prefixes))
    }


def whole_environment(**changes: str) -> dict[str, str]:
    """A copy of this process's environment with ``changes``, for a router that it starts."""
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
