"""Every call ends in exactly one line and one count, whatever becomes of it."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.servers.deployment import CHAT, CLAUDE, DEAD, HELLO, SECOND, Deployment
from tests.servers.router_process import wait_until
from tests.servers.scrapes import samples, total
from tests.servers.streaming_client import StreamingClient

CALLS = 300
AT_ONCE = 12


class Caller:
    """Makes calls that end in every way there is; each method returns the outcome to expect."""

    def __init__(self, deployed: Deployment) -> None:
        self._deployed = deployed
        self.kinds: tuple[Callable[[str], str], ...] = (
            self.whole,
            self.streamed,
            self.translated,
            self.left_at_once,
            self.left_amid_chunks,
            self.left_while_waiting,
            self.timed_out,
            self.refused_connection,
            self.unknown_model,
            self.unknown_caller,
            self.nonsense,
            self.unknown_path,
        )

    def _open(self, request_id: str, model: str, *, stream: bool) -> StreamingClient:
        headers = {"X-API-Key": self._deployed.key.key, "X-Request-ID": request_id}
        fields = {"model": model, "messages": HELLO, "stream": stream}
        port = self._deployed.router.port
        return StreamingClient(port, "/v1/chat/completions", fields, headers)

    def _call(self, request_id: str, model: str, *, key: str | None = None) -> int:
        fields = {"model": model, "messages": HELLO}
        key = self._deployed.key.key if key is None else key
        router = self._deployed.router
        return router.post("/v1/chat/completions", fields, key, request_id=request_id).status

    def whole(self, request_id: str) -> str:
        assert self._call(request_id, CHAT) == 200
        return "completed"

    def streamed(self, request_id: str) -> str:
        with self._open(request_id, CHAT, stream=True) as client:
            client.read_head()
            assert b"[DONE]" in client.read_rest()
        return "completed"

    def translated(self, request_id: str) -> str:
        with self._open(request_id, CLAUDE, stream=True) as client:
            client.read_head()
            assert b"[DONE]" in client.read_rest()
        return "completed"

    def left_at_once(self, request_id: str) -> str:
        with self._open(request_id, CHAT, stream=True) as client:
            client.read_head()
            client.leave(rudely=True)
        return "client_aborted"

    def left_amid_chunks(self, request_id: str) -> str:
        with self._open(request_id, CHAT, stream=True) as client:
            client.read_head()
            client.read_event()
            client.leave()
        return "client_aborted"

    def left_while_waiting(self, request_id: str) -> str:
        # With an RST the kernel would drop what the router has not read yet.
        with self._open(request_id, SECOND, stream=random.random() < 0.5) as client:
            time.sleep(0.05)
            client.leave()
        return "client_aborted"

    def timed_out(self, request_id: str) -> str:
        assert self._call(request_id, SECOND) == 504
        return "timeout"

    def refused_connection(self, request_id: str) -> str:
        assert self._call(request_id, DEAD) == 503
        return "upstream_error"

    def unknown_model(self, request_id: str) -> str:
        assert self._call(request_id, "nothing") == 404
        return "rejected"

    def unknown_caller(self, request_id: str) -> str:
        assert self._call(request_id, CHAT, key="nobody") == 401
        return "rejected"

    def nonsense(self, request_id: str) -> str:
        headers = {
            "X-API-Key": self._deployed.key.key,
            "X-Request-ID": request_id,
            "Content-Type": "application/json",
        }
        reply = self._deployed.router.request("POST", "/v1/inference", b"{", headers)
        assert reply.status == 400
        return "rejected"

    def unknown_path(self, request_id: str) -> str:
        headers = {"X-Request-ID": request_id}
        assert self._deployed.router.request("GET", "/nowhere", headers=headers).status == 404
        return "rejected"


def test_each_call_is_settled_once(deployed: Deployment) -> None:
    """U5, U9, B5: one line with the right outcome for each of many calls, and one count."""
    router = deployed.router
    deployed.backend.set(tokens_output=6, token_interval_ms=60)
    deployed.second.set(failure="black_hole")
    caller = Caller(deployed)
    calls = [(str(uuid.uuid4()), caller.kinds[n % len(caller.kinds)]) for n in range(CALLS)]
    random.shuffle(calls)
    before = samples(router.metrics())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        expected = list(pool.map(lambda call: call[1](call[0]), calls))
    ids = {request_id for request_id, _ in calls}
    wait_until(
        lambda: len(ids & {line["request_id"] for line in router.calls()}) == CALLS,
        5,
        "a line for each call",
    )

    lines = [line for line in router.calls() if line["request_id"] in ids]
    assert Counter(line["request_id"] for line in lines) == Counter(dict.fromkeys(ids, 1))
    outcomes = {line["request_id"]: line["outcome"] for line in lines}
    wrong = [
        (call.__name__, outcomes[request_id], outcome)
        for (request_id, call), outcome in zip(calls, expected, strict=True)
        if outcomes[request_id] != outcome
    ]
    assert wrong == []
    after = samples(router.metrics())
    for outcome, count in Counter(expected).items():
        assert total(after, outcome=outcome) - total(before, outcome=outcome) >= count
    counted = sum(
        total(after, endpoint=endpoint) - total(before, endpoint=endpoint)
        for endpoint in ("openai.chat_completions", "native.inference", "unknown")
    )
    assert counted == CALLS
