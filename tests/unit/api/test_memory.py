"""When a request has ended, nothing of it waits for a search for cycles: it may be large."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from router.api.scope import Scope
from tests.fakes.router_stand import Reply, RouterStand, chat_body

CHAT = "/v1/chat/completions"
CASES: dict[str, Callable[[RouterStand], Reply]] = {
    "served": lambda stand: stand.chat(),
    "served, native": lambda stand: stand.inference(),
    "streamed": lambda stand: stand.chat(stream=True),
    "no JSON": lambda stand: stand.call("POST", CHAT, body=b"{x"),
    "too many elements": lambda stand: stand.call("POST", CHAT, body=b"[" * 200_000),
    "too deep": lambda stand: stand.call("POST", CHAT, body=b"[" * 1_000),
    "a wrong field": lambda stand: stand.chat(temperature="hot"),
    "a folding name": lambda stand: stand.chat(Model="x"),
    "an unknown model": lambda stand: stand.chat(model="nowhere"),
    "too long": lambda stand: stand.inference(text="x" * 70_000),
    "no JSON type": lambda stand: stand.call(
        "POST", CHAT, body=b"{}", headers={"Content-Type": "text/plain"}
    ),
    "a revoked key": lambda stand: stand.call("POST", CHAT, json=chat_body(), key="revoked"),
    "no key": lambda stand: stand.call("POST", CHAT, json=chat_body(), key=None),
    "a missing scope": lambda stand: stand.call("GET", "/v1/usage", key="spare"),
    "a wrong signature": lambda stand: stand.call(
        "POST", CHAT, json=chat_body(), headers=stand.signature("POST", "/another")
    ),
    "no such path": lambda stand: stand.call("POST", "/nowhere", json=chat_body()),
    "no such method": lambda stand: stand.call("PUT", CHAT, json=chat_body()),
    "an encoded slash": lambda stand: stand.call("POST", "/v1/a%2fb", json=chat_body()),
}


def scopes() -> int:
    return sum(isinstance(each, Scope) for each in gc.get_objects())


@pytest.mark.parametrize("case", CASES)
def test_a_request_leaves_nothing_behind(stand: RouterStand, case: str) -> None:
    """P5: an error holds the frames that it has passed, and those hold the body."""
    CASES[case](stand)
    gc.collect()
    gc.disable()
    try:
        before = scopes()
        for _ in range(3):
            CASES[case](stand)
        assert scopes() <= before
    finally:
        gc.enable()
