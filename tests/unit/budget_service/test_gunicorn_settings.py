"""Where the service may listen, and as whom."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.budget_service.gunicorn_settings import configuration, is_loopback
from router.config.settings import Address, Settings, SettingsError, load_settings

TOKEN = {"BUDGET_SERVICE_TOKEN": "t" * 16}
HERE = ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST"]
ELSEWHERE = [
    "0.0.0.0", "::", "10.0.0.1", "192.168.1.1", "::ffff:10.0.0.1", "fe80::1", "::ffff:0.0.0.0",
    "budget-service", "localhost.example.org", "127.0.0.1.example.org", "127.1",
]  # fmt: skip


@pytest.mark.parametrize("host", HERE)
def test_without_a_token_it_listens_on_loopback(host: str) -> None:
    """Only this host reaches it."""
    assert is_loopback(Address(host, 8082))
    configuration(Settings(budget_service_bind=Address(host, 8082)))


@pytest.mark.parametrize("host", ELSEWHERE)
def test_elsewhere_it_needs_a_token(host: str) -> None:
    """Whatever is not known to be loopback counts as reachable, a name too."""
    assert not is_loopback(Address(host, 8082))
    with pytest.raises(SettingsError) as raised:
        configuration(Settings(budget_service_bind=Address(host, 8082)))
    [problem] = raised.value.problems
    assert problem.startswith("BUDGET_SERVICE_TOKEN: must be set")
    bind = Address(host, 8082)
    found = configuration(Settings(budget_service_bind=bind, budget_service_token="t" * 16))
    assert found["bind"] == [str(bind)]


def test_an_empty_host_is_every_interface() -> None:
    """``BUDGET_SERVICE_BIND=:9000``."""
    with pytest.raises(SettingsError):
        configuration(load_settings({"BUDGET_SERVICE_BIND": ":9000"}))
    assert configuration(load_settings({"BUDGET_SERVICE_BIND": ":9000", **TOKEN}))


def test_it_is_served_as_the_router_is() -> None:
    """gunicorn with gevent workers, as many as the environment says."""
    found = configuration(load_settings({"WEB_CONCURRENCY": "5", "ROUTER_LOG_LEVEL": "WARNING"}))
    assert (found["workers"], found["loglevel"]) == (5, "warning")
    assert found["worker_class"] == "router.server.worker.RouterWorker"


def test_workers_of_root_are_the_owner_of_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the agent could not read the spool that they write."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    settings = load_settings({"ROUTER_DATA_DIR": str(tmp_path)})
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat_result((0o40700, *[7] * 9)))
    found = configuration(settings)
    assert (found["user"], found["group"]) == (7, 7)
