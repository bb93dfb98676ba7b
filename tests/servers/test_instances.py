"""Several routers on one host, and starts that cannot succeed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.servers.deployment import CHAT, HELLO, Deployment, deploy
from tests.servers.router_process import RouterProcess, run_routerctl

START_CHECK_S = 15.0
"""gunicorn tries a busy port five times, a second apart."""


def test_two_instances_run_side_by_side(deployed: Deployment, tmp_path: Path) -> None:
    """With other directories and ports they share neither keys, nor documents, nor figures."""
    first = deployed.router
    with deploy(tmp_path, workers=1) as other:
        second = other.router
        before = first.answered_by_slot(status="200")
        for router, key in ((first, deployed.key), (second, other.key)):
            reply = router.post("/v1/chat/completions", {"model": CHAT, "messages": HELLO}, key.key)
            assert reply.status == 200
        unknown_callers = [
            first.request("GET", "/v1/models", headers={"X-API-Key": other.key.key}),
            second.request("GET", "/v1/models", headers={"X-API-Key": deployed.key.key}),
        ]

        assert [reply.status for reply in unknown_callers] == [401, 401]
        assert (first.answered_by_slot(status="200") - before).total() == 1
        assert 'backend="mock-a",error="none"} 1.0' in second.metrics()
        assert second.stop() == 0
    assert first.request("GET", "/readyz").status == 200


def test_a_second_start_does_no_harm(deployed: Deployment, tmp_path: Path) -> None:
    """Started twice by mistake: the second says which port is in use and leaves the first alone."""
    first = deployed.router
    fields = {"model": CHAT, "messages": HELLO}
    assert first.post("/v1/chat/completions", fields, deployed.key.key).status == 200
    before = first.answered_by_slot()
    second = RouterProcess(
        tmp_path,
        port=first.port,
        ops_port=first.ops_port,
        environment={"ROUTER_DATA_DIR": str(first.data_dir)},
    )
    second.spawn()
    try:
        code = second.wait(START_CHECK_S)
    finally:
        second.kill()

    assert code == 1
    said = [line["event"] for line in second.log() if line["level"] == "error"]
    assert any("in use" in text and str(first.port) in text for text in said)
    assert "Traceback" not in second.log_text()
    assert first.post("/v1/chat/completions", fields, deployed.key.key).status == 200
    assert first.answered_by_slot() >= before
    assert "api_router_requests_total" in first.metrics()


WRONG = {
    "ROUTER_BIND": "nonsense",
    "WEB_CONCURRENCY": "0",
    "ROUTER_BODY_TIMEOUT": "soon",
    "ROUTER_ON_CLIENT_ABORT": "shrug",
    "ROUTER_KEY_PEPPER": "short",
}


@pytest.mark.parametrize("door", ["gunicorn", "routerctl"])
def test_a_wrong_environment_is_told_at_once(tmp_path: Path, door: str) -> None:
    """Every variable that is wrong, in one message, without a traceback; the exit code is not 0."""
    if door == "routerctl":
        refused = run_routerctl("serve", environment=WRONG, cwd=tmp_path)
        code, said = refused.returncode, refused.stdout + refused.stderr
    else:
        router = RouterProcess(tmp_path, environment=WRONG)
        router.spawn()
        code, said = router.wait(START_CHECK_S), router.log_text()

    assert code == (2 if door == "routerctl" else 1)
    assert "Traceback" not in said
    for name in WRONG:
        assert said.count(f"{name}:") == 1, said
    assert "short" not in said.partition("ROUTER_KEY_PEPPER")[2], "the pepper is a secret"


@pytest.mark.parametrize("trouble", ["not a directory", "weak pepper", "open pepper"])
def test_an_unusable_data_directory_is_told_at_once(tmp_path: Path, trouble: str) -> None:
    """One line that names the place; no traceback for each worker."""
    router = RouterProcess(tmp_path)
    if trouble == "not a directory":
        router.data_dir.write_text("a file")
    else:
        router.data_dir.mkdir()
        pepper = router.data_dir / "pepper"
        pepper.write_text("x" * (8 if trouble == "weak pepper" else 64))
        pepper.chmod(0o600 if trouble == "weak pepper" else 0o644)
    router.spawn()
    started_s = time.monotonic()

    assert router.wait(START_CHECK_S) == 1
    assert time.monotonic() - started_s < START_CHECK_S / 2
    assert "Traceback" not in router.log_text()
    (said,) = [line["event"] for line in router.faults()]
    assert str(router.data_dir) in said


def test_it_starts_with_nothing_applied(tmp_path: Path) -> None:
    """D6: no dependency, no document: 503; ready once a document names a backend."""
    router = RouterProcess(tmp_path, workers=1).start()
    try:
        assert router.request("GET", "/healthz").status == 200
        assert router.request("GET", "/readyz").status == 503
        refused = router.post("/v1/chat/completions", {}, "rtr_live_" + "a" * 32 + "_000000")
        assert (refused.status, refused.json["error"]["code"]) == (503, "not_configured")
        assert int(refused.headers["Retry-After"]) >= 1

        applied = router.apply(
            {
                "version": 1,
                "organizations": [{"id": "acme"}],
                "models": [{"id": "m"}],
                "backends": [{"id": "b", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}],
                "policies": [{"organization": "*", "model": "*", "backends": [{"id": "b"}]}],
            }
        )
        assert applied.returncode == 0, applied.stderr
        time.sleep(0.5)
        assert router.request("GET", "/readyz").status == 200
        assert router.stop() == 0
    finally:
        router.kill()
