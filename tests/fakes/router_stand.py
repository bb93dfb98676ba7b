"""A router in this process: the real application, real stores, live backends, time that stands.

Every answer is held against the published contract on its way to the test.
"""

from __future__ import annotations

import copy
import io
import json as jsonlib
import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask import Flask
from prometheus_client import CollectorRegistry

from router.app import create_app
from router.auth.keys import derive_signing_secret, generate_key, hash_key
from router.auth.signatures import SignedParts, sign
from router.clock import FrozenClock
from router.config.loader import load_serialized
from router.config.settings import Settings
from router.config.state.state_writer import StateWriter
from router.limits.worker_limits import Limits
from router.services.limits_wiring import build_limits
from router.services.worker_services import Services, build_services
from router.telemetry.logs import CallLog
from router.telemetry.metrics import Metrics
from tests.contract.checker import Contract
from tests.fakes import records
from tests.fakes.backend.anthropic_api import AnthropicApi
from tests.fakes.backend.openai_api import OpenAIApi
from tests.fakes.frozen_redis import FrozenRedis, frozen_redis
from tests.fakes.stand_backends import Backends
from tests.fakes.wsgi import Headers, OpenReply, Reply, open_reply

PEPPER = "a pepper for the tests of 32 bytes"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BACKEND_KEY = "sk-with-which-the-router-proves-itself"


@dataclass
class RouterStand:
    """The application with everything that a test wants to look at."""

    services: Services
    backends: Backends
    keys: Mapping[str, str]
    clock: FrozenClock
    redis: FrozenRedis
    log: io.BytesIO = field(default_factory=io.BytesIO)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        recorder, self.spool = records.watched(self.services.recorder)
        self.services = replace(
            self.services,
            recorder=recorder,
            call_log=CallLog(self.log),
            metrics=Metrics(self.registry),
        )
        self.app: Flask = create_app(self.services)

    # --- requests ---------------------------------------------------------------------------

    def open(
        self,
        method: str,
        target: str,
        *,
        key: str | None = "main",
        json: Any = None,
        body: bytes | io.IOBase = b"",
        headers: Headers = (),
        **environ: Any,
    ) -> OpenReply:
        """Send a request; ``key`` names one of the stand's keys."""
        sent = list(headers.items() if isinstance(headers, Mapping) else headers)
        names = {name.lower() for name, _ in sent}
        if json is not None:
            body = jsonlib.dumps(json).encode()
        if body and "content-type" not in names:
            sent.append(("Content-Type", "application/json"))
        if key is not None and not names & {"x-api-key", "authorization"}:
            sent.append(("X-API-Key", self.keys[key]))
        return open_reply(self.app, method, target, sent, body, **environ)

    def call(self, method: str, target: str, *, promised: bool = True, **request: Any) -> Reply:
        """Send a request and read its answer; unless not ``promised``, the contract holds."""
        reply = self.open(method, target, **request).read()
        problems = self.violations(method, target, reply) if promised else []
        problems += self.spool.violations
        if problems:
            raise AssertionError("\n".join([*problems, repr(reply.body[:2000])]))
        return reply

    def violations(self, method: str, target: str, reply: Reply) -> list[str]:
        """What of the answer is not as the contract says."""
        contract = Contract.published()
        return contract.violations(method, target, reply.status, reply.headers, reply.body)

    def chat(self, model: str = "gpt-4o", text: str = "hello there", **more: Any) -> Reply:
        """A chat call in the OpenAI dialect; ``more`` goes into the body."""
        return self.call("POST", "/v1/chat/completions", json=chat_body(model, text, **more))

    def inference(self, model: str = "gpt-4o", text: str = "hello there", **more: Any) -> Reply:
        """The same call in the native dialect."""
        return self.call("POST", "/v1/inference", json=native_body(model, text, **more))

    def signature(
        self, method: str, target: str, body: bytes = b"", /, *, key: str = "main", **changes: str
    ) -> dict[str, str]:
        """The three headers that sign a request; ``changes`` replace signed parts."""
        path, _, query = target.partition("?")
        facts = {
            "method": method,
            "path": path,
            "query": query,
            "timestamp": str(int(self.clock.now_s())),
            "nonce": secrets.token_hex(16),
        }
        parts = SignedParts(**{**facts, **changes})
        key_hash = hash_key(self.keys[key], PEPPER.encode()).hex()
        secret = derive_signing_secret(PEPPER.encode(), f"key-{key}", key_hash)
        return {
            "X-Router-Timestamp": parts.timestamp,
            "X-Router-Nonce": parts.nonce,
            "X-Router-Signature": sign(secret, parts, body),
        }

    def store_records(self) -> None:
        """Make what was recorded so far visible to the endpoints that show it."""
        records.store(self.spool, self.services.settings.store_url, PEPPER)

    # --- what became of it ------------------------------------------------------------------

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The call log so far."""
        return [jsonlib.loads(line) for line in self.log.getvalue().splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        """The one usage record."""
        [record] = self.spool.records
        return record

    @property
    def event(self) -> dict[str, Any]:
        """The one audit event."""
        [event] = self.spool.events
        return event

    @property
    def line(self) -> dict[str, Any]:
        """The one line of the call log."""
        [line] = self.lines
        return line

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample; 0 when there is none yet."""
        return self.registry.get_sample_value(f"api_router_{name}", labels) or 0.0

    def received(self) -> int:
        """Number of requests that reached any backend."""
        return sum(len(backend.requests) for backend in self.backends.each)


def chat_body(model: str = "gpt-4o", text: str = "hello there", **more: Any) -> dict[str, Any]:
    """A chat call of one message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def native_body(model: str = "gpt-4o", text: str = "hello there", **more: Any) -> dict[str, Any]:
    """A native call of one text."""
    return {"request_id": str(uuid.uuid4()), "model": model, "payload": text, **more}


class FailingForwarder:
    """Raises what it was given instead of serving."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def send(self, *_: Any) -> Any:
        raise self._error


def _keys(clock: FrozenClock) -> dict[str, dict[str, Any]]:
    """Name → what is special about the key."""
    moment = "2027-01-15T08:00:00Z"  # where a frozen clock stands
    assert clock.now_s() == 1_800_000_000.0
    return {
        "main": {"scopes": ["inference", "models:read", "audit:read", "usage:read"]},
        "spare": {},
        "expired": {"expires_at": moment},
        "revoked": {"status": "revoked"},
        "demo": {"demo": True},
        "inactive": {"organization": "closed"},
        "narrow": {"organization": "narrow"},
        "narrow_reader": {"organization": "narrow", "scopes": ["audit:read", "usage:read"]},
        "limited": {"models": ["gpt-4o", "unpriced"]},
        "reading": {"scopes": ["models:read"]},
        "calling": {"scopes": ["inference"]},
        "signing": {"require_signature": True},
        "saving": {"budgets": [{"name": "pocket", "unit": "usd", "period": "total", "limit": "5"}]},
        "slow": {"rate_limit": {"requests_per_second": 0.5, "burst": 1}},
    }


def _forgetful(settings: Settings, clock: FrozenClock, redis: FrozenRedis) -> Limits:
    """Limits whose budgets begin anew: the records hold the calls of other tests."""
    return build_limits(settings, lambda _organization, _lost: 0, clock=clock, runner=redis)


@dataclass(frozen=True)
class World:
    """What is the same for all tests: backends that run, a store that is filled, one worker."""

    settings: Settings
    backends: Backends
    keys: Mapping[str, str]
    clock: FrozenClock
    services: Services
    redis: FrozenRedis

    def stand(self, **parts: Any) -> RouterStand:
        """A fresh application over it, backends and time as in the beginning; ``parts`` are put
        in place of the services of the same names."""
        self.backends.reset()
        self.redis.reset()
        beginning = FrozenClock()
        self.clock.wall_s, self.clock.mono_s = beginning.wall_s, beginning.mono_s
        limits = _forgetful(parts.get("settings", self.settings), self.clock, self.redis)
        services = replace(self.services, **{"limits": limits, **parts})
        return RouterStand(services, self.backends, self.keys, self.clock, self.redis)

    @contextmanager
    def other_stand(self, **settings: Any) -> Iterator[RouterStand]:
        """An application with settings, and therefore services, of its own."""
        self.backends.reset()
        self.redis.reset()
        while self.services.watch._is_observing:  # it reads the store
            gevent.sleep(0.01)
        self.services.state.close()  # a process can have a store open once; it opens again
        clock = FrozenClock()
        redis = copy.copy(self.redis)
        redis.clock = clock
        changed = replace(self.settings, **settings)
        services = build_services(changed, clock=clock, runner=redis)
        services = replace(services, limits=_forgetful(changed, clock, redis))
        try:
            yield RouterStand(services, self.backends, self.keys, clock, redis)
        finally:
            services.close()


@contextmanager
def running_world(data_dir: Path) -> Iterator[World]:
    """Start backends, make keys, apply the document."""
    clock = FrozenClock()
    facts = _keys(clock)
    keys = {name: generate_key("test") for name in facts}
    hashed = {
        name: {"hash": hash_key(keys[name], PEPPER.encode()).hex(), **more}
        for name, more in facts.items()
    }
    credential_file = data_dir / "credential"
    credential_file.write_text(BACKEND_KEY)
    settings = Settings(
        data_dir=data_dir,
        key_pepper=PEPPER,
        workers=1,
        build="tested",
        # Time stands still, and most tests are about something else.
        rate_limit_rps=1_000_000,
        rate_limit_burst=1_000_000,
    )
    with (
        OpenAIApi("first", api_key=BACKEND_KEY) as first,
        OpenAIApi("second") as second,
        OpenAIApi("plain") as plain,
        AnthropicApi(api_key=BACKEND_KEY) as anthropic,
        frozen_redis(data_dir, clock) as redis,
    ):
        backends = Backends(first, second, plain, anthropic)
        document = backends.document(hashed, credential_file)
        StateWriter(settings.state_dir, clock).apply(load_serialized(document))
        services = build_services(settings, clock=clock, runner=redis)
        try:
            yield World(settings, backends, keys, clock, services, redis)
        finally:
            services.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Backends and stores that all tests share."""
    with running_world(tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture
def stand(world: World) -> RouterStand:
    """An application nobody has used yet."""
    return world.stand()
