"""Ends in a hurry: whatever a client has had something of is on record, exactly once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.servers.deployment import CHAT, HELLO, Deployment, deploy
from tests.servers.ledger import Ledger, await_end
from tests.servers.router_process import wait_until
from tests.servers.streaming_client import StreamingClient

EXIT_S = 5.0
STREAMS = 3


def open_streams(deployed: Deployment) -> list[StreamingClient]:
    """Streams that would take minutes, of which each client has seen some."""
    deployed.backend.set(tokens_output=10_000, token_interval_ms=100)
    clients = []
    for number in range(STREAMS):
        headers = {"X-API-Key": deployed.key.key, "X-Request-ID": f"stream-{number}"}
        fields = {"model": CHAT, "messages": HELLO, "stream": True}
        client = StreamingClient(deployed.router.port, "/v1/chat/completions", fields, headers)
        assert client.read_head()[0] == 200
        for _ in range(3):
            client.read_event()
        clients.append(client)
    return clients


def check_settled(deployed: Deployment, clients: list[StreamingClient]) -> None:
    """One line, one record and one event of each stream, and no client that takes it for whole."""
    router = deployed.router
    wanted = sorted(client.request_id for client in clients)
    for client in clients:
        assert not client.read_rest().endswith(b"0\r\n\r\n")
        client.leave()
    if router.stop() == 0:
        await_end(router)
    ledger = Ledger(router.data_dir)
    records = [record for record in ledger.usage() if record["request_id"] in wanted]
    assert sorted(record["request_id"] for record in records) == wanted
    assert {record["outcome"] for record in records} == {"client_aborted"}
    assert all(record["tokens_output"] > 0 for record in records)
    events = [event["request_id"] for event in ledger.audit() if event["request_id"] in wanted]
    assert sorted(events) == wanted
    lines = [line["request_id"] for line in router.calls() if line["request_id"] in wanted]
    assert sorted(lines) == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_router_that_is_told_to_end_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """U5: what it cuts off is settled before it is gone."""
    with deploy(tmp_path) as deployed:
        clients = open_streams(deployed)
        deployed.router.signal(number)
        started_s = time.monotonic()
        assert deployed.router.wait() == 0
        assert time.monotonic() - started_s < EXIT_S
        check_settled(deployed, clients)


def test_a_drain_that_is_cut_short(tmp_path: Path) -> None:
    """U5: SIGINT after SIGTERM leaves the workers two seconds, which is enough."""
    with deploy(tmp_path) as deployed:
        clients = open_streams(deployed)
        deployed.router.signal(signal.SIGTERM)
        time.sleep(1.5)
        deployed.router.signal(signal.SIGINT)
        assert deployed.router.wait(EXIT_S) == 0
        check_settled(deployed, clients)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGABRT])
def test_a_worker_that_is_told_to_end_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """U5: the same, and another takes its place."""
    with deploy(tmp_path, workers=1) as deployed:
        clients = open_streams(deployed)
        [pid] = deployed.router.worker_pids()
        os.kill(pid, number)
        replaced_s = wait_until(
            lambda: deployed.router.worker_pids() not in ([pid], []), 20, "another worker"
        )
        assert replaced_s < EXIT_S
        check_settled(deployed, clients)


def test_workers_whose_master_is_gone(tmp_path: Path) -> None:
    """U5: they notice, settle what runs, and end."""
    with deploy(tmp_path) as deployed:
        clients = open_streams(deployed)
        deployed.router.signal(signal.SIGKILL)
        deployed.router.wait()
        check_settled_without_master(deployed, clients)


def check_settled_without_master(deployed: Deployment, clients: list[StreamingClient]) -> None:
    """The workers' lines tell of each stream once; the records stay in the spool."""
    wanted = sorted(client.request_id for client in clients)
    for client in clients:
        assert not client.read_rest().endswith(b"0\r\n\r\n")
        client.leave()
    for request_id in wanted:
        assert deployed.router.line_of(request_id)["outcome"] == "client_aborted"


def test_a_worker_whose_loop_is_blocked(tmp_path: Path) -> None:
    """U5: the heartbeat's kill ends what blocks, and the other calls of the worker are settled."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    # Whoever asks for this path gets a worker that does nothing else any more.
    (hooks / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib import abc\n"
        "class Spy(abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'router.wsgi':\n"
        "            import router.app\n"
        "            made = router.app.create_app\n"
        "            def create_app(wired):\n"
        "                app = made(wired)\n"
        "                def spin():\n"
        "                    from flask import request\n"
        "                    while request.path == '/spin':\n"
        "                        pass\n"
        "                app.before_request_funcs[None].insert(0, spin)\n"
        "                return app\n"
        "            router.app.create_app = create_app\n"
        "sys.meta_path.insert(0, Spy())\n"
    )
    search = os.pathsep.join([str(hooks), os.environ.get("PYTHONPATH", "")])
    with deploy(tmp_path / "router", workers=1, PYTHONPATH=search) as deployed:
        clients = open_streams(deployed)
        [pid] = deployed.router.worker_pids()
        spinner = StreamingClient(deployed.router.port, "/spin", {}, {})
        time.sleep(0.5)
        os.kill(pid, signal.SIGABRT)
        wait_until(lambda: deployed.router.worker_pids() not in ([pid], []), EXIT_S, "another")
        spinner.leave()
        check_settled(deployed, clients)
