"""A signed request is accepted once: by whatever worker and host, and whatever was restarted."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from router.auth.keys import derive_signing_secret, hash_key
from router.auth.signatures import SignedParts, sign
from tests.fakes.redis_server import RedisServer, running
from tests.servers.limited_routers import LimitedRouters, body, key, limited_routers, secret
from tests.servers.router_process import RouterProcess, wait_until

PEPPER = "a pepper for the tests of 32 bytes"
CALL, MODELS = "/v1/inference", "/v1/models"
RECOVERY_S = 20.0
PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))


class Signed:
    """A request that was signed once, and may be sent several times."""

    def __init__(self, path: str, key_id: str = "main") -> None:
        self.method = "POST" if path == CALL else "GET"
        self.path, self.body = path, json.dumps(body()).encode() if path == CALL else b""
        stamp, nonce = str(int(time.time())), secrets.token_hex(16)
        parts = SignedParts(self.method, path, "", stamp, nonce)
        key_hash = hash_key(secret(key_id), PEPPER.encode()).hex()
        signing_secret = derive_signing_secret(PEPPER.encode(), key_id, key_hash)
        self.headers: Mapping[str, str] = {
            "Content-Type": "application/json",
            "X-API-Key": secret(key_id),
            "X-Router-Timestamp": stamp,
            "X-Router-Nonce": nonce,
            "X-Router-Signature": sign(signing_secret, parts, self.body),
        }

    def to(self, router: RouterProcess) -> int:
        return router.request(self.method, self.path, self.body, self.headers).status


def _serves(router: RouterProcess) -> bool:
    return Signed(CALL).to(router) == 200


@contextmanager
def routers(directory: Path, redis: RedisServer, **settings: str) -> Iterator[LimitedRouters]:
    settings = {"ROUTER_KEY_PEPPER": PEPPER, "ROUTER_REDIS_TIMEOUT": "2s", **settings}
    keys = [key("main"), key("other", "other")]
    with limited_routers(directory, redis.url, keys, instances=2, **settings) as running_routers:
        yield running_routers


@pytest.mark.parametrize("options", [(), ("--appendonly", "yes")] if PROOF else [()])
def test_a_replay_is_refused_everywhere(tmp_path: Path, options: tuple[str, ...]) -> None:
    """P20: by the same worker, the other one, the other host, after HUP, after Redis' restart."""
    with running(tmp_path / "redis", *options) as redis, routers(tmp_path, redis) as deployed:
        first, second = deployed.routers
        call, models = Signed(CALL), Signed(MODELS)
        assert (call.to(first), models.to(first)) == (200, 200)

        before = first.answered_by_slot(status="401")
        statuses = [sent.to(first) for _ in range(12) for sent in (call, models)]
        assert statuses == [401] * 24
        refused_by = first.answered_by_slot(status="401") - before
        assert len(refused_by) == 2, "one worker has refused all of them"
        assert (call.to(second), models.to(second)) == (401, 401)

        workers = first.worker_pids()
        first.signal(signal.SIGHUP)
        wait_until(lambda: not set(workers) & set(first.worker_pids()), RECOVERY_S, "a reload")
        assert (call.to(first), models.to(first)) == (401, 401)

        redis.stop()
        away = [Signed(CALL).to(first), call.to(first), models.to(second)]
        redis.start()
        assert away == [503, 503, 503]
        for router in (first, second):
            wait_until(partial(_serves, router), RECOVERY_S, "Redis to be seen")
        after = {sent.to(router) for sent in (call, models) for router in (first, second)}
        assert after <= {401, 503}


@pytest.mark.parametrize("quota", [20, 200_000] if PROOF else [20])
def test_what_one_key_signs_leaves_the_others_alone(tmp_path: Path, quota: int) -> None:
    """P16: a key above its quota gets 429; another organization's signatures and calls go on."""
    with (
        running(tmp_path / "redis") as redis,
        routers(tmp_path, redis, ROUTER_NONCES_PER_KEY=str(quota)) as deployed,
    ):
        first, second = deployed.routers
        statuses = [Signed(MODELS).to(first if turn % 2 else second) for turn in range(quota + 5)]
        assert statuses == [200] * quota + [429] * 5
        assert [Signed(path, "other").to(first) for path in (CALL, MODELS)] == [200, 200]
        assert deployed.call("other").status == 200
        assert deployed.call("main").status == 200, "unsigned calls need no nonce"
