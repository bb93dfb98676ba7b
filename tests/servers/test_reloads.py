"""HUP under load, direct and through nginx: new workers take over, and no call is lost.

With ``ROUTER_TEST_PROOF=1`` as many reloads as a week of an operator brings.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.deployment import CHAT, Deployment, deploy
from tests.servers.router_process import wait_until
from tests.servers.steady_client import SteadyClients, steady_clients
from tests.servers.test_nginx_conf import NGINX, running_site

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
RELOADS = 20 if PROOF else 2
RELOAD_S = 30.0


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A router of its own: its workers are replaced all the time."""
    with deploy(tmp_path_factory.mktemp("reloads")) as deployed:
        yield deployed
        assert deployed.router.faults() == []


@contextmanager
def callers(deployed: Deployment, directory: Path, through: str) -> Iterator[SteadyClients]:
    """They call until the block ends, and each call has to be answered."""
    port = deployed.router.port
    if through == "nginx" and NGINX is None:
        pytest.skip("NGINX IS NOT INSTALLED: reloads are not tested behind it")
    site = running_site(directory, port) if through == "nginx" else iter([port])
    for entrance in site:
        with steady_clients(directory, entrance, deployed.key.key, CHAT, name="clients") as clients:
            wait_until(lambda: clients.count() > 20, 10, "traffic")
            yield clients
        assert clients.words().keys() == {"200"}, clients.words()


@pytest.mark.parametrize("through", ["router", "nginx"])
def test_a_reload_loses_no_call(reloaded: Deployment, tmp_path: Path, through: str) -> None:
    """G5: a connection is not ended when a request has just been sent on it."""
    with callers(reloaded, tmp_path, through):
        for _ in range(RELOADS):
            old = set(reloaded.router.worker_pids())
            reloaded.router.signal(signal.SIGHUP)
            wait_until(
                lambda old=old: not old & set(reloaded.router.worker_pids()),
                RELOAD_S,
                "other workers",
            )


def test_reloads_that_come_faster_than_workers_boot(reloaded: Deployment, tmp_path: Path) -> None:
    """G5: somebody serves all the time, because old workers stay until new ones have come."""
    with callers(reloaded, tmp_path, "router") as clients:
        old = set(reloaded.router.worker_pids())
        for _ in range(RELOADS + 1):
            answered = clients.count()
            reloaded.router.signal(signal.SIGHUP)
            time.sleep(0.3)
            assert clients.count() > answered
        wait_until(lambda: not old & set(reloaded.router.worker_pids()), RELOAD_S, "other workers")
        for _ in range(10):
            answered = clients.count()
            time.sleep(0.3)
            assert clients.count() > answered
