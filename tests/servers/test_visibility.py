"""What a call leaves can be asked for within two seconds of its end, from every worker."""

from __future__ import annotations

import statistics
import time
import uuid
from pathlib import Path

from tests.servers.deployment import CHAT, HELLO, ORGANIZATION, Deployment, deploy
from tests.servers.router_process import NewKey, wait_until
from tests.servers.test_store_postgres import Server, server

__all__ = ["server"]

CALLS = 10
PROMISED_S = 2.0
GIVEN_UP_S = 15.0
LOOKS = 4
"""How often each story is asked for again, each time of whichever worker takes the connection."""


def story_status(deployed: Deployment, auditor: NewKey, request_id: str) -> int:
    path, headers = f"/v1/audit/requests/{request_id}", {"X-API-Key": auditor.key}
    reply = deployed.router.request("GET", path, headers=headers)
    if reply.status != 200:
        return reply.status
    story = reply.json
    assert (len(story["records"]), len(story["events"])) == (1, 1)
    assert story["records"][0]["outcome"] == "completed"
    return 200


def seconds_to_see(deployed: Deployment, auditor: NewKey) -> float:
    """From the end of a call until its story is told, by all workers."""
    request_id, fields = str(uuid.uuid4()), {"model": CHAT, "messages": HELLO}
    router = deployed.router
    reply = router.post("/v1/chat/completions", fields, deployed.key.key, request_id=request_id)
    ended_s = time.monotonic()
    assert reply.status == 200
    wait_until(lambda: story_status(deployed, auditor, request_id) == 200, GIVEN_UP_S, "its story")
    seen_s = time.monotonic() - ended_s
    assert [story_status(deployed, auditor, request_id) for _ in range(LOOKS)] == [200] * LOOKS
    return seen_s


def check_visible(deployed: Deployment) -> None:
    auditor = deployed.router.create_key(ORGANIZATION, "--scope", "audit:read")
    seconds_to_see(deployed, auditor)  # the agent has started, the store is made
    seen_s = [seconds_to_see(deployed, auditor) for _ in range(CALLS)]
    assert statistics.median(seen_s) < PROMISED_S, seen_s
    told = deployed.router.answered_by_slot(endpoint="records.request_story", status="200")
    assert len(told) == 2, "one worker has told all of them"


def test_a_call_is_visible_soon(tmp_path: Path) -> None:
    """In the file that the router makes itself."""
    with deploy(tmp_path) as deployed:
        check_visible(deployed)


def test_a_call_is_visible_soon_in_a_database(tmp_path: Path, server: Server) -> None:
    """In the PostgreSQL that gateway and agent are given."""
    server.empty()
    with deploy(tmp_path, ROUTER_RECORD_STORE=server.url()) as deployed:
        check_visible(deployed)
        assert not list(deployed.router.data_dir.glob("records.db*"))
        assert deployed.router.stop() == 0
