"""Every answer that the document promises can be had, and is as promised when it comes.

A status that no test here can bring about does not belong into the document, so it fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.api.views import health as status_views
from router.app import expose_metrics
from tests.contract.answer_cases import CASES, HEALTH, OPS, Case, get
from tests.contract.checker import CONTRACTS, Contract
from tests.fakes.router_stand import RouterStand, World


@pytest.mark.parametrize(("path", "key", "case"), CASES)
def test_an_answer_is_as_promised(world: World, path: str, key: str, case: Case) -> None:
    """Status, body, headers: the stand holds each answer against the document."""
    reply = case(world, path)
    assert key in (str(reply.status), f"{reply.status // 100}XX")


@pytest.mark.parametrize("path", HEALTH)
def test_a_defect_of_the_health_check(
    world: World, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only way to have a 500 from there is to break it."""
    monkeypatch.setattr(status_views, "_build", lambda: {}["x"])
    assert get(world, path, SERVER_PORT=OPS).status == 500


def test_metrics(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 on their own listener, 404 on the other, 500 when the files are gone."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    stand = world.stand()
    expose_metrics(stand.app)
    own = {"SERVER_PORT": "8081"}
    assert stand.call("GET", "/metrics", **own).status == 200
    openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert stand.call("GET", "/metrics", headers=openmetrics, **own).status == 200
    assert stand.call("GET", "/metrics").status == 404
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "gone"))
    assert stand.call("GET", "/metrics", **own).status == 500


BEYOND = {
    "/nothing": ("404", "GET", "/nothing"),
    "/v1/nothing": ("404", "GET", "/v1/nothing"),
    "/healthz": ("405", "POST", "/healthz"),
    "/v1/models": ("405", "POST", "/v1/models"),
    "/a//b": ("400", "GET", "/a//b"),
    "/v1/a%2fb": ("400", "GET", "/v1/a%2fb"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_what_fits_no_operation(stand: RouterStand, case: str) -> None:
    """The components say what it meets."""
    status, method, target = BEYOND[case]
    assert str(stand.call(method, target).status) == status


def promised() -> Iterator[tuple[str, str]]:
    document = json.loads((CONTRACTS / "openapi.json").read_text("utf-8"))
    for path, item in document["paths"].items():
        for operation in item.values():
            if isinstance(operation, dict):
                yield from ((path, key) for key in operation["responses"])


def test_nothing_is_promised_in_vain() -> None:
    """Each status of each operation stands in one of the tests above."""
    had = {(path.replace("/gpt-4o", "/{model}"), key) for path, key, _ in CASES}
    had |= {(path, "500") for path in HEALTH}
    had |= {("/metrics", key) for key in ("200", "404", "500")}
    assert set(promised()) == had


NEVER_HAD = {
    # The client that would hear of it has left.
    "#/components/schemas/Error/properties/code/enum/CLIENT_GONE",
    # Agent and record store can only degrade; `checks` goes with the next release.
    "#/components/schemas/ComponentCheck/properties/status/enum/failed",
}


def test_every_field_and_every_code_is_had(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cases above, each documented field of an answer is there once, and each error code
    of a status and each choice of a field is the one that comes.

    The schemas of requests are held to the readers, those of records to the records themselves.
    """
    for path, _, case in CASES:
        case(world, path)
    for name in BEYOND:
        test_what_fits_no_operation(world.stand(), name)
    test_metrics(world, tmp_path, monkeypatch)
    test_a_defect_of_the_health_check(world, HEALTH[0], monkeypatch)
    document = json.loads((CONTRACTS / "openapi.json").read_text("utf-8"))
    schemas = {
        f"#/components/schemas/{name}"
        for name in document["components"]["schemas"]
        if not name.endswith(("Request", "Parameters"))
        and name not in ("Message", "StreamOptions", "UsageRecord", "AuditEvent")
    }
    assert set(Contract.published().unseen("#/components/responses", *sorted(schemas))) == NEVER_HAD


def test_the_stand_would_notice(stand: RouterStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not as promised does not pass."""
    monkeypatch.setattr(status_views, "_build", lambda: {"version": 1})
    reply = stand.call("GET", "/healthz", promised=False, SERVER_PORT=OPS)
    assert len(stand.violations("GET", "/healthz", reply)) == 1
    with pytest.raises(AssertionError, match="1 is not of type 'string'"):
        stand.call("GET", "/healthz", SERVER_PORT=OPS)
    assert Contract.published() is Contract.published()
