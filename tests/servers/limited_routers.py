"""Routers with limits: one or more instances, one Redis, one fake backend, keys that are known."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.config.document import Document
from router.config.state.state_reader import StateReader
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.windows import WindowState
from router.limits.configured import window_specs
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from tests.fakes.backend.openai_api import OpenAIApi
from tests.servers.router_process import RouterProcess, clean_environment, free_port

MODEL = "gpt-4o"
NANOS_A_TOKEN = 10_000
"""The price of what is generated; what is sent costs nothing, so that a call's cost is known."""

PATIENT: dict[str, Any] = {"ROUTER_REDIS_TIMEOUT": "5s"}
"""Where Redis is not what is tested: a busy machine is no outage."""

CAREFUL: dict[str, Any] = {"reservation": {"mode": "worst_case"}}
"""A budget that reserves what a call may use at most: never more than its limit is spent."""


def key(id: str, organization: str = "acme", **limits: Any) -> dict[str, Any]:
    """A key that is known by its id."""
    return {"id": id, "organization": organization, "demo_secret": secret(id), **limits}


def secret(id: str) -> str:
    """What a client sends of the key with this id."""
    return f"demo-{id}"


def budget(name: str, unit: str, limit: Any, period: str = "total", **more: Any) -> dict[str, Any]:
    return {"name": name, "unit": unit, "limit": limit, "period": period, **more}


def rate(per_s: float, burst: int, **more: Any) -> dict[str, Any]:
    return {"requests_per_second": per_s, "burst": burst, **more}


def body(**changes: Any) -> dict[str, Any]:
    """A native call with an id of its own."""
    request_id = str(uuid.uuid4())
    return {"request_id": request_id, "model": MODEL, "payload": "Tell me of the sea", **changes}


@dataclass
class LimitedRouters:
    """Instances that share a Redis; the first is the one that single calls go to."""

    routers: list[RouterProcess]
    backend: OpenAIApi
    redis_url: str
    _clients: ExitStack = field(default_factory=ExitStack)

    @property
    def router(self) -> RouterProcess:
        return self.routers[0]

    def call(self, key: str, fields: Mapping[str, Any] | None = None, **headers: str) -> Any:
        """One native call."""
        return self.router.post("/v1/inference", dict(fields or body()), secret(key), **headers)

    def ledger(self) -> Ledger:
        """On the same Redis, for whoever wants to look."""
        address = parse_address(self.redis_url)
        client = RedisClient(address, ConnectionOptions(login=address.login, timeout_s=5.0))
        self._clients.callback(client.close)
        return Ledger(client)

    def states(self, key: str, ledger: Ledger | None = None) -> list[WindowState]:
        """What the counters of a key and its organization say."""
        reader = StateReader(self.router.data_dir / "state")
        try:
            found = reader.find_key_with_id(key)
            assert found is not None
            document: Document = reader.document()
        finally:
            reader.close()
        specs = window_specs(document.organizations[found.organization_id], found)
        return [*(ledger or self.ledger()).read(found.organization_id, specs)]

    def state(self, key: str) -> WindowState:
        """Of a key that has one budget, and whose organization has none."""
        [state] = self.states(key)
        return state

    def backend_calls(self) -> int:
        return len(self.backend.requests)


@contextmanager
def limited_routers(
    directory: Path,
    redis_url: str,
    keys: Sequence[Mapping[str, Any]],
    *,
    organizations: Sequence[Mapping[str, Any]] = (),
    instances: int = 1,
    workers: int = 2,
    timeouts: Mapping[str, float] | None = None,
    backend_url: str | None = None,
    **settings: str,
) -> Iterator[LimitedRouters]:
    """They run until the block ends. Unless it is said otherwise, organizations are unlimited.
    ``backend_url`` is called in place of the backend."""
    given = {one["id"]: dict(one) for one in organizations}
    for one in keys:
        unlimited = {"requests_per_second": None}
        given.setdefault(one["organization"], {"id": one["organization"], "rate_limit": unlimited})
    with ExitStack() as stack:
        backend = stack.enter_context(OpenAIApi(name="a"))
        price = {
            "input_usd_per_million_tokens": "0",
            "output_usd_per_million_tokens": str(NANOS_A_TOKEN // 1000),
        }
        document = {
            "version": 1,
            "organizations": list(given.values()),
            "keys": [{"rate_limit": {"requests_per_second": None}, **one} for one in keys],
            "models": [{"id": MODEL, "prices": price}],
            "backends": [
                {
                    "id": "mock",
                    "kind": "openai",
                    "base_url": backend_url or f"{backend.url}/v1",
                    **({"timeouts": dict(timeouts)} if timeouts else {}),
                }
            ],
            "policies": [{"organization": "*", "model": "*", "backends": [{"id": "mock"}]}],
        }
        routers = []
        for number in range(instances):
            router = RouterProcess(
                directory / f"router-{number}",
                workers=workers,
                environment={
                    "ROUTER_DEMO": "1",
                    "RATE_LIMIT_REDIS_ADDR": redis_url,
                    "ROUTER_INSTANCES": str(instances),
                    **settings,
                },
            )
            stack.callback(router.kill)
            routers.append(router.start(document))
        made = LimitedRouters(routers, backend, redis_url)
        stack.enter_context(made._clients)
        yield made
        for router in routers:
            router.stop()


@contextmanager
def budget_service(directory: Path, redis_url: str) -> Iterator[dict[str, Any]]:
    """The reference service over this Redis; the settings of a router that asks it."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    service = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", "budget-service", "--no-records"],
        env=clean_environment(
            {
                **PATIENT,
                "ROUTER_DATA_DIR": str(directory),
                "RATE_LIMIT_REDIS_ADDR": redis_url,
                "BUDGET_SERVICE_BIND": f"127.0.0.1:{port}",
            }
        ),
        stdout=subprocess.PIPE,
    )
    assert service.stdout is not None
    try:
        assert any(endpoint.encode() in line for line in service.stdout)
        yield {"BUDGET_SERVICE_ENDPOINT": endpoint, "BUDGET_SERVICE_TIMEOUT": "20s"}
    finally:
        service.terminate()
        service.communicate(timeout=15)


@dataclass(frozen=True)
class Answer:
    """What one of many callers got, and when."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    began_s: float
    took_s: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def post(
    port: int,
    key: str,
    fields: Mapping[str, Any],
    timeout_s: float = 60.0,
    path: str = "/v1/inference",
) -> Answer:
    """One call on a connection of its own; status 0 when the connection broke."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    began_s = time.monotonic()
    try:
        headers = {"Content-Type": "application/json", "X-API-Key": secret(key)}
        connection.request("POST", path, json.dumps(fields).encode(), headers)
        reply = connection.getresponse()
        read = reply.read()
        found = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, found, read, began_s, time.monotonic() - began_s)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, {}, repr(error).encode(), began_s, time.monotonic() - began_s)
    finally:
        connection.close()


def at_once(calls: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Every call in a thread of its own, all let go together."""
    answers: list[Answer] = []
    gate = threading.Barrier(len(calls))

    def make(call: Callable[[], Answer]) -> None:
        gate.wait()
        answers.append(call())

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def statuses(answers: Sequence[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)
