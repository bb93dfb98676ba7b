"""The environment: every variable, its bounds, its mistakes, and credentials by reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.settings import (
    REDIS_SCHEMES,
    Address,
    Settings,
    SettingsError,
    child_environment,
    export_metrics_dir,
    load_settings,
    resolve_credential,
    whole_environment,
)
from router.redis.address import parse_address

LIMITS: list[tuple[str, str, str, Any]] = [
    ("RATE_LIMIT_REDIS_ADDR", "localhost:6379", "redis_addr", "localhost:6379"),
    ("RATE_LIMIT_REDIS_ADDR", "unix:///run/redis", "redis_addr", "unix:///run/redis"),
    ("RATE_LIMIT_REDIS_ADDR", "embedded://", "redis_addr", "embedded://"),
    ("RATE_LIMIT_REDIS_PASSWORD", "secret", "redis_password", "secret"),
    ("RATE_LIMIT_DEFAULT_RPS", "0", "rate_limit_rps", 0),
    ("RATE_LIMIT_BURST_SIZE", "9000000000", "rate_limit_burst", 9_000_000_000),
    ("ROUTER_REDIS_TIMEOUT", "20ms", "redis_timeout_s", 0.02),
    ("ROUTER_RATE_LIMIT_FALLBACK", "Closed", "rate_limit_fallback", "closed"),
    ("ROUTER_INSTANCES", "8", "instances", 8),
    ("ROUTER_RESERVATION", "worst_case", "reservation", "worst_case"),
    ("ROUTER_RESERVATION_CAP_USD", "0.000000001", "reservation_cap_nanos", 1),
    ("ROUTER_RESERVATION_CAP_USD", "9000000", "reservation_cap_nanos", 9_000_000 * 10**9),
    ("ROUTER_RESERVATION_FLOOR_USD", "0", "reservation_floor_nanos", 0),
    ("ROUTER_UNKNOWN_PRICE", "refuse", "unknown_price", "refuse"),
    ("ROUTER_TOKEN_VOCABULARY", "/v/o200k.tiktoken", "token_vocabulary", Path("/v/o200k.tiktoken")),
    ("ROUTER_ABANDONED", "reserved", "abandoned", "reserved"),
    ("ROUTER_LEASE", "2h", "lease_s", 7200.0),
    ("ROUTER_BUDGET_FALLBACK", "open", "budget_fallback", "open"),
    (
        "BUDGET_SERVICE_ENDPOINT",
        "http://localhost:8082/",
        "budget_service_endpoint",
        "http://localhost:8082",
    ),
    ("BUDGET_SERVICE_TIMEOUT", "500ms", "budget_service_timeout_s", 0.5),
    ("BUDGET_SERVICE_MODE", "Reserve", "budget_service_mode", "reserve"),
    ("BUDGET_SERVICE_TOKEN", "t" * 16, "budget_service_token", "t" * 16),
    ("BUDGET_SERVICE_BIND", ":9000", "budget_service_bind", Address("0.0.0.0", 9000)),
    ("ROUTER_IDEMPOTENCY_MAX_BYTES", "0", "idempotency_max_bytes", 0),
    ("ROUTER_IDEMPOTENCY_FALLBACK", "closed", "idempotency_fallback", "closed"),
]

ACCEPTED: list[tuple[str, str, str, Any]] = [
    ("ROUTER_BIND", "0.0.0.0:80", "bind", Address("0.0.0.0", 80)),
    ("ROUTER_BIND", ":8000", "bind", Address("0.0.0.0", 8000)),
    ("ROUTER_BIND", "[::1]:8000", "bind", Address("::1", 8000)),
    ("ROUTER_BIND", "localhost:1", "bind", Address("localhost", 1)),
    ("ROUTER_BIND", "localhost:65535", "bind", Address("localhost", 65535)),
    ("ROUTER_OPS_BIND", "127.0.0.1:9", "ops_bind", Address("127.0.0.1", 9)),
    ("ROUTER_DATA_DIR", "/var/lib/router", "data_dir", Path("/var/lib/router")),
    ("PROMETHEUS_MULTIPROC_DIR", "/run/m", "metrics_dir", Path("/run/m")),
    ("WEB_CONCURRENCY", "1", "workers", 1),
    ("WEB_CONCURRENCY", "256", "workers", 256),
    ("ROUTER_MAX_REQUESTS", "0", "max_requests", 0),
    ("ROUTER_KEEPALIVE", "600", "keepalive_s", 600),
    ("ROUTER_DEMO", "true", "demo", True),
    ("ROUTER_DEMO", "YES", "demo", True),
    ("ROUTER_DEMO", "on", "demo", True),
    ("ROUTER_DEMO", "1", "demo", True),
    ("ROUTER_DEMO", "False", "demo", False),
    ("ROUTER_DEMO", "no", "demo", False),
    ("ROUTER_DEMO", "off", "demo", False),
    ("ROUTER_DEMO", "0", "demo", False),
    ("ROUTER_KEY_PEPPER", "x" * 32, "key_pepper", "x" * 32),
    ("ROUTER_KEY_PEPPER", "é" * 16, "key_pepper", "é" * 16),
    ("ROUTER_MAX_BODY_BYTES", "1024", "max_body_bytes", 1024),
    ("ROUTER_BODY_TIMEOUT", "2", "body_timeout_s", 2.0),
    ("ROUTER_BODY_TIMEOUT", "2.5", "body_timeout_s", 2.5),
    ("ROUTER_BODY_TIMEOUT", "2s", "body_timeout_s", 2.0),
    ("ROUTER_BODY_TIMEOUT", "250ms", "body_timeout_s", 0.25),
    ("ROUTER_BODY_TIMEOUT", "1m", "body_timeout_s", 60.0),
    ("ROUTER_BACKEND_IDLE", "0", "backend_idle_s", 0.0),
    ("ROUTER_ON_CLIENT_ABORT", "DRAIN", "on_client_abort", "drain"),
    ("ROUTER_LOG_LEVEL", "debug", "log_level", "DEBUG"),
    ("ROUTER_BUILD", "1a2b3c", "build", "1a2b3c"),
    ("ROUTER_BUILD", "  spaced  ", "build", "spaced"),
    *LIMITS,
]

REFUSED: list[tuple[str, str]] = [
    ("ROUTER_BIND", "8080"),
    ("ROUTER_BIND", "localhost"),
    ("ROUTER_BIND", "localhost:"),
    ("ROUTER_BIND", "localhost:http"),
    ("ROUTER_BIND", "localhost:65536"),
    ("ROUTER_BIND", "localhost:-1"),
    ("ROUTER_BIND", "localhost:²"),
    ("WEB_CONCURRENCY", "0"),
    ("WEB_CONCURRENCY", "257"),
    ("WEB_CONCURRENCY", "two"),
    ("WEB_CONCURRENCY", "1.5"),
    ("WEB_CONCURRENCY", "9" * 5_000),
    ("ROUTER_MAX_REQUESTS", "-1"),
    ("ROUTER_DEMO", "maybe"),
    ("ROUTER_MAX_BODY_BYTES", "1023"),
    ("ROUTER_BODY_TIMEOUT", "0"),
    ("ROUTER_BODY_TIMEOUT", "-1s"),
    ("ROUTER_BODY_TIMEOUT", "11m"),
    ("ROUTER_BODY_TIMEOUT", "nan"),
    ("ROUTER_BODY_TIMEOUT", "inf"),
    ("ROUTER_BODY_TIMEOUT", "soon"),
    ("ROUTER_BODY_TIMEOUT", "ms"),
    ("ROUTER_ON_CLIENT_ABORT", "ignore"),
    ("ROUTER_LOG_LEVEL", "TRACE"),
    ("ROUTER_KEY_PEPPER", "x" * 31),
    ("RATE_LIMIT_REDIS_ADDR", "http://localhost"),
    ("RATE_LIMIT_REDIS_ADDR", "embedded://data"),
    ("RATE_LIMIT_REDIS_ADDR", "two words"),
    ("RATE_LIMIT_DEFAULT_RPS", "-1"),
    ("RATE_LIMIT_DEFAULT_RPS", "1000001"),
    ("RATE_LIMIT_BURST_SIZE", "9000000001"),
    ("ROUTER_RATE_LIMIT_FALLBACK", "none"),
    ("ROUTER_REDIS_TIMEOUT", "0"),
    ("ROUTER_INSTANCES", "0"),
    ("ROUTER_RESERVATION", "none"),
    ("ROUTER_RESERVATION_CAP_USD", "-1"),
    ("ROUTER_RESERVATION_CAP_USD", "0.0000000001"),
    ("ROUTER_RESERVATION_CAP_USD", "9000000.01"),
    ("ROUTER_RESERVATION_CAP_USD", "1e3"),
    ("ROUTER_LEASE", "500ms"),
    ("ROUTER_BUDGET_FALLBACK", "local"),
    ("BUDGET_SERVICE_ENDPOINT", "localhost:8082"),
    ("BUDGET_SERVICE_ENDPOINT", "http://localhost/?a=b"),
    ("BUDGET_SERVICE_TIMEOUT", "0"),
    ("BUDGET_SERVICE_MODE", "checks"),
    ("BUDGET_SERVICE_TOKEN", "t" * 15),
    ("BUDGET_SERVICE_TOKEN", "with a line\nbreak in it"),
    ("BUDGET_SERVICE_BIND", "8082"),
]


@pytest.mark.parametrize(("variable", "raw", "field", "value"), ACCEPTED)
def test_a_variable_fills_its_field(variable: str, raw: str, field: str, value: Any) -> None:
    """And no other field."""
    found = load_settings({variable: raw})
    expected = {**_fields(Settings()), field: value}
    assert _fields(found) == expected
    assert type(getattr(found, field)) is type(value)


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in Settings.__dataclass_fields__}


@pytest.mark.parametrize("raw", ["", " ", "\t\n"])
def test_an_empty_variable_is_not_set(raw: str) -> None:
    """As `docker run -e NAME=` and empty lines of an environment file mean it."""
    names = {variable for variable, *_ in ACCEPTED}
    assert load_settings(dict.fromkeys(names, raw)) == Settings()


@pytest.mark.parametrize(("variable", "raw"), REFUSED)
def test_a_wrong_value_is_refused_by_its_name(variable: str, raw: str) -> None:
    """One problem, which begins with the variable at fault."""
    with pytest.raises(SettingsError) as raised:
        load_settings({variable: raw})
    [problem] = raised.value.problems
    assert problem.startswith(f"{variable}: ")


def test_all_mistakes_are_reported_at_once() -> None:
    """Nobody wants to find them one start at a time."""
    wrong = {
        "ROUTER_BIND": "nowhere",
        "WEB_CONCURRENCY": "many",
        "ROUTER_DEMO": "maybe",
        "ROUTER_KEY_PEPPER": "short and secret",
    }
    with pytest.raises(SettingsError) as raised:
        load_settings(wrong)
    assert {problem.partition(":")[0] for problem in raised.value.problems} == set(wrong)
    assert all(f"\n  {problem}" in str(raised.value) for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("limit", "workers", "segment_bytes"),
    [
        (1 << 20, 1, 131_072),
        (1 << 20, 4, 32_768),
        (8 << 20, 1, 1_048_576),
        (64 << 20, 4, 2_097_152),
        (2 << 30, 2, 16_777_216),
        (2 << 30, 128, 2_097_152),
        (1 << 40, 256, 16_777_216),
    ],
)
def test_the_open_segments_are_an_eighth_of_the_spool(
    limit: int, workers: int, segment_bytes: int
) -> None:
    """P3: together, at most; what is shipped and still in them must never fill it."""
    variables = {"ROUTER_SPOOL_MAX_BYTES": f"{limit}", "WEB_CONCURRENCY": f"{workers}"}
    assert load_settings(variables).spool_segment_bytes == segment_bytes


@pytest.mark.parametrize(("limit", "workers"), [(1 << 20, 5), ((1 << 20) * 4 - 1, 16)])
def test_a_spool_that_is_too_small_for_its_workers(limit: int, workers: int) -> None:
    """P3: refused at the start, with the arithmetic, not when it is full."""
    with pytest.raises(SettingsError) as raised:
        load_settings({"ROUTER_SPOOL_MAX_BYTES": f"{limit}", "WEB_CONCURRENCY": f"{workers}"})
    assert raised.value.problems == [
        f"ROUTER_SPOOL_MAX_BYTES: {limit} bytes are too few for {workers} workers: "
        f"each needs 262144 (8 files of 32768), {workers * 262144} together"
    ]


def test_a_refused_pepper_is_not_repeated() -> None:
    """K6: the message ends up in logs; the others show what was wrong with the value."""
    with pytest.raises(SettingsError) as raised:
        load_settings({"ROUTER_KEY_PEPPER": "short and secret", "ROUTER_DEMO": "maybe"})
    assert "short and secret" not in str(raised.value)
    assert "'maybe'" in str(raised.value)


def test_no_secret_of_the_limits_is_repeated() -> None:
    """K6: neither in the message of a refusal nor where the settings are shown."""
    wrong = {
        "RATE_LIMIT_REDIS_ADDR": "redos://user:canary@host",
        "BUDGET_SERVICE_ENDPOINT": "http://user:canary@host",
        "BUDGET_SERVICE_TOKEN": "canary",
    }
    with pytest.raises(SettingsError) as raised:
        load_settings(wrong)
    assert len(raised.value.problems) == 3
    right = {"RATE_LIMIT_REDIS_PASSWORD": "canary", "BUDGET_SERVICE_TOKEN": "canary" * 3}
    assert "canary" not in str(raised.value) + repr(load_settings(right))


def test_the_schemes_of_redis_are_those_that_are_understood() -> None:
    """What the settings let pass can be connected to, and nothing else."""
    urls = {
        scheme: f"{scheme}://{'/path' if scheme == 'unix' else 'host/master'}"
        for scheme in REDIS_SCHEMES
        if "cluster" not in scheme and scheme not in ("redis", "rediss")
    }
    urls |= {scheme: f"{scheme}://host" for scheme in REDIS_SCHEMES if scheme not in urls}
    for url in urls.values():
        parse_address(load_settings({"RATE_LIMIT_REDIS_ADDR": url}).redis_addr)
    with pytest.raises(ValueError, match="unknown scheme") as raised:
        parse_address("http://host")
    known = str(raised.value).partition("known are ")[2].split(", ")
    assert sorted(known) == sorted(REDIS_SCHEMES)


@pytest.mark.parametrize(
    ("bind", "ops_bind"),
    [("127.0.0.1:8000", "127.0.0.1:8000"), ("0.0.0.0:8000", "127.0.0.1:8000"), (":8081", "")],
)
def test_both_listeners_need_a_port_of_their_own(bind: str, ops_bind: str) -> None:
    """Z2: the port is what tells the operations listener from the public one."""
    with pytest.raises(SettingsError, match="ROUTER_OPS_BIND: must use another port"):
        load_settings({"ROUTER_BIND": bind, "ROUTER_OPS_BIND": ops_bind})


@pytest.mark.parametrize("variable", ["ROUTER_BIND", "ROUTER_OPS_BIND"])
def test_a_listener_needs_a_port_that_is_known(variable: str) -> None:
    """Port 0 is any port: the metrics used to be reachable on none of them."""
    with pytest.raises(SettingsError, match=f"{variable}: expected HOST:PORT"):
        load_settings({variable: "127.0.0.1:0"})


def test_other_variables_do_not_matter() -> None:
    """Neither those of the host nor those that only look like ours."""
    assert load_settings({"PATH": "/bin", "ROUTER_UNKNOWN": "1", "router_demo": "1"}) == Settings()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping, what the operator has exported counts."""
    monkeypatch.setenv("ROUTER_BUILD", "exported")
    assert load_settings().build == "exported"


@pytest.mark.parametrize("address", [Address("127.0.0.1", 80), Address("::1", 80), Address("h", 9)])
def test_an_address_is_read_as_it_is_written(address: Address) -> None:
    """IPv6 addresses stand in brackets."""
    assert load_settings({"ROUTER_BIND": str(address)}).bind == address


def test_the_store_is_in_the_data_directory() -> None:
    """One variable moves all that an instance keeps."""
    assert load_settings({"ROUTER_DATA_DIR": "/srv/a"}).state_dir == Path("/srv/a/state")


@given(st.dictionaries(st.sampled_from(sorted({name for name, *_ in ACCEPTED})), st.text()))
def test_no_value_gets_past_with_another_error(environ: dict[str, str]) -> None:
    """Whatever stands in the variables, it is settings or a list of problems."""
    problems: list[str] = []
    try:
        load_settings(environ)
    except SettingsError as error:
        problems = error.problems
    assert {problem.partition(":")[0] for problem in problems} <= {*environ, "ROUTER_OPS_BIND"}


# --- what processes hand on -----------------------------------------------------------------


def test_the_metrics_directory_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The metrics library and the children read it from the environment."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "before")
    export_metrics_dir(tmp_path)
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path)


_SECRETS = {
    "ACME_CREDENTIAL": "of a backend",
    "AWS_SECRET_ACCESS_KEY": "of the host",
    "OPENAI_API_KEY": "of a shell",
}
_SETTINGS = {
    "ROUTER_KEY_PEPPER": "p" * 32,
    "KAFKA_BROKERS": "k:9092",
    "KAFKA_API_VERSION": "2.3",
    "PGPASSFILE": "/pgpass",
}


@pytest.mark.parametrize(
    ("settings", "passed"),
    [(False, {}), (True, _SETTINGS)],
    ids=["redis and demo backends", "agent"],
)
def test_a_child_gets_only_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, settings: bool, passed: dict[str, str]
) -> None:
    """Credentials of backends stay here: nothing that the router starts calls one."""
    needed = {"PATH": "/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONPATH": "/lib"}
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in {**needed, **_SETTINGS, **_SECRETS}.items():
        monkeypatch.setenv(name, value)
    assert child_environment(settings=settings) == {**needed, **passed}


def test_a_router_that_is_started_gets_a_changed_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own environment stays as it is."""
    monkeypatch.setenv("ROUTER_BUILD", "ours")
    child = whole_environment(ROUTER_BUILD="theirs", NEW="1")
    assert (child["ROUTER_BUILD"], child["NEW"]) == ("theirs", "1")
    assert {**child, "ROUTER_BUILD": "ours"}.items() >= os.environ.items()
    assert (os.environ["ROUTER_BUILD"], os.environ.get("NEW")) == ("ours", None)


# --- credentials by reference ---------------------------------------------------------------


def test_a_credential_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there; an empty variable holds none."""
    environ = {"THE_KEY": "sk-1", "EMPTY": ""}
    assert resolve_credential("env:THE_KEY", environ) == "sk-1"
    assert resolve_credential("env:EMPTY", environ) is None
    assert resolve_credential("env:ABSENT", environ) is None
    monkeypatch.setenv("THE_KEY", "sk-2")
    assert resolve_credential("env:THE_KEY") == "sk-2"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"sk-1", "sk-1"), (b" sk-1\n", "sk-1"), (b"", None), (b" \n", None), (b"\xff\xfe", None)],
)
def test_a_credential_from_a_file(tmp_path: Path, content: bytes, expected: str | None) -> None:
    """Without the line end that editors add; what is no text is no credential."""
    path = tmp_path / "key:with:colons"
    path.write_bytes(content)
    assert resolve_credential(f"file:{path}") == expected


def test_a_file_that_cannot_be_read_holds_no_credential(tmp_path: Path) -> None:
    """Neither a missing one nor a directory stops the router."""
    assert resolve_credential(f"file:{tmp_path / 'absent'}") is None
    assert resolve_credential(f"file:{tmp_path}") is None


def test_a_rotated_file_is_read_anew(tmp_path: Path) -> None:
    """Nothing is remembered here."""
    path = tmp_path / "key"
    for secret in ("sk-1", "sk-2"):
        path.write_text(secret)
        assert resolve_credential(f"file:{path}") == secret


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@@bad:port:99/db",
        "postgresql://u:secret@host:port/db",
        "postgresql://u:secret@host:99999/db",
        "postgresql://u:secret@host",
        "mysql://u:secret@host/db",
    ],
)
def test_a_record_store_that_is_no_url(url: str) -> None:
    """It is named, and its password is not."""
    with pytest.raises(SettingsError) as refusal:
        load_settings({"ROUTER_RECORD_STORE": url})
    [problem] = refusal.value.problems
    assert problem.startswith("ROUTER_RECORD_STORE: ")
    assert "secret" not in problem


@pytest.mark.parametrize(
    "url", ["postgresql:///router?host=/run/postgresql", "postgresql://u:%40@h:5432/db"]
)
def test_urls_of_a_record_store(url: str) -> None:
    """Over a socket or a network; the driver is ours to choose."""
    stored = load_settings({"ROUTER_RECORD_STORE": url}).store_url
    assert stored == url.replace("postgresql:", "postgresql+psycopg:")
