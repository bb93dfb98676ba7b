"""What `routerctl` changes holds in every worker within a second, without a restart."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.deployment import CHAT, HELLO, ORGANIZATION, Deployment
from tests.servers.load import running_load
from tests.servers.router_process import wait_until

CLIENTS = 12
LIVE_S = 1.0
"""Within which a change must be seen by every worker."""


@pytest.fixture
def document(deployed: Deployment) -> Iterator[Any]:
    """The document in force, to be changed; what it was returns afterwards."""
    yield copy.deepcopy(deployed.document)
    assert deployed.router.apply(deployed.document).returncode == 0


def test_a_revoked_key_is_refused_everywhere(deployed: Deployment) -> None:
    """K1, P18: under continuous traffic with the key, on kept connections, on each worker."""
    router = deployed.router
    key = router.create_key(ORGANIZATION)

    def call(_: str) -> tuple[str, Any, dict[str, str]]:
        fields = {"model": CHAT, "messages": HELLO}
        return "/v1/chat/completions", fields, {"X-API-Key": key.key}

    slots_before = router.answered_by_slot(status="401")
    with running_load(router.port, call, clients=CLIENTS, name=key.id) as load:
        wait_until(lambda: len(load.results) > 20 * CLIENTS, 10, "traffic")
        revoked = router.ctl("keys", "revoke", key.id)
        revoked_s = time.monotonic()
        time.sleep(LIVE_S + 0.5)

    assert revoked.returncode == 0, revoked.stderr
    assert all(result.error is None for result in load.results)
    late = load.since(revoked_s + LIVE_S)
    assert len(late) > CLIENTS
    assert {result.status for result in late} == {401}
    assert {result.status for result in load.results} == {200, 401}
    refused = router.answered_by_slot(status="401") - slots_before
    assert set(refused) == {"slot0", "slot1"}, "one worker had none of the traffic"


def test_a_revoked_key_stays_revoked(deployed: Deployment) -> None:
    """P18: applying the document anew brings no revoked key back."""
    router = deployed.router
    key = router.create_key(ORGANIZATION)
    assert router.request("GET", "/v1/models", headers={"X-API-Key": key.key}).status == 200
    router.ctl("keys", "revoke", key.id)
    assert router.apply(deployed.document).returncode == 0

    assert router.request("GET", "/v1/models", headers={"X-API-Key": key.key}).status == 401


def test_a_new_key_works_at_once(deployed: Deployment) -> None:
    """K4: no worker remembers that a key was unknown."""
    router = deployed.router
    for _ in range(3):
        key = router.create_key(ORGANIZATION)
        statuses = {
            router.request("GET", "/v1/models", headers={"X-API-Key": key.key}).status
            for _ in range(6)
        }
        assert statuses == {200}


def test_an_applied_document_is_live_in_every_worker(deployed: Deployment, document: Any) -> None:
    """C1, P13: a model appears under traffic, within a second, with no failed call."""
    router = deployed.router
    document["models"].append({"id": "brand-new"})

    def call(_: str) -> tuple[str, Any, dict[str, str]]:
        fields = {"model": "brand-new", "messages": HELLO}
        return "/v1/chat/completions", fields, {"X-API-Key": deployed.key.key}

    slots_before = router.answered_by_slot(status="200")
    with running_load(router.port, call, clients=CLIENTS, name="apply") as load:
        wait_until(lambda: len(load.results) > 5 * CLIENTS, 10, "traffic")
        applied = router.apply(document)
        applied_s = time.monotonic()
        time.sleep(LIVE_S + 0.5)

    assert applied.returncode == 0, applied.stderr
    late = load.since(applied_s + LIVE_S)
    assert len(late) > CLIENTS
    assert {result.status for result in late} == {200}
    assert {(result.status, result.error) for result in load.results} == {(404, None), (200, None)}
    served = router.answered_by_slot(status="200") - slots_before
    assert set(served) == {"slot0", "slot1"}, "one worker had none of the traffic"


def test_a_suspended_organization_is_refused(deployed: Deployment, document: Any) -> None:
    """K6: its keys meet the same 401 as an unknown key does, word for word."""
    router, headers = deployed.router, {"X-API-Key": deployed.key.key}
    unknown = router.request("GET", "/v1/models")
    document["organizations"][0]["active"] = False
    assert router.apply(document).returncode == 0
    time.sleep(LIVE_S)

    suspended = router.request("GET", "/v1/models", headers=headers)

    assert (suspended.status, suspended.body) == (unknown.status, unknown.body)
    assert suspended.status == 401


def test_a_moved_backend_is_found(deployed: Deployment, document: Any) -> None:
    """C1: a new address and a new weight are in force without a restart."""
    router = deployed.router
    document["policies"][0]["backends"] = [{"id": "mock-b"}]
    assert router.apply(document).returncode == 0
    time.sleep(LIVE_S)

    for _ in range(4):
        fields = {"model": CHAT, "messages": HELLO}
        reply = router.post("/v1/chat/completions", fields, deployed.key.key)
        assert (reply.status, reply.headers["X-Routing-Backend"]) == (200, "mock-b")
    assert len(deployed.backend.requests) == 0
    assert len(deployed.second.requests) == 4


@pytest.mark.parametrize("mistake", ["unknown backend", "unknown field", "two mistakes"])
def test_a_bad_document_changes_nothing(deployed: Deployment, document: Any, mistake: str) -> None:
    """C2: every mistake is named, the exit code is 1, and calls go on as before."""
    router = deployed.router
    before = router.request("GET", "/readyz", ops=True).json["checks"]["state"]
    document["models"].append({"id": "half-applied"})
    if mistake != "unknown field":
        document["policies"][0]["backends"] = [{"id": "nowhere"}]
    if mistake != "unknown backend":
        document["backends"][0]["colour"] = "red"
    refused = router.apply(document)
    time.sleep(LIVE_S)

    assert refused.returncode == 1
    assert ("nowhere" in refused.stderr) == (mistake != "unknown field")
    assert ("colour" in refused.stderr) == (mistake != "unknown backend")
    assert router.request("GET", "/readyz", ops=True).json["checks"]["state"] == before
    models = router.request("GET", "/v1/models", headers={"X-API-Key": deployed.key.key})
    assert b"half-applied" not in models.body
