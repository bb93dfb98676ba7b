"""What holds for every request, whatever its path: ids, dialects, refusals, who called."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from router.app import create_app
from tests.fakes.router_stand import TRACEPARENT, RouterStand, World, chat_body, native_body

CHAT = "/v1/chat/completions"
KEYLESS = ("/healthz", "/readyz", "/v1/status/healthz", "/v1/status/readyz")
UNKNOWN = {
    "native": [
        "/",
        "/v2/models",
        "/admin",
        "/v1",
        "/v1/inference/",
        "/v1/status/other",
        "/healthz/",
    ],
    "openai": ["/v1/", "/v1/images", "/v1/models/", "/v1/chat", "/v1/chat/completions/"],
}
ERROR_FIELDS = {"native": {"error", "code", "trace_id"}, "openai": {"error"}}


# --- ids ------------------------------------------------------------------------------------


def test_the_clients_request_id_comes_back(stand: RouterStand) -> None:
    """In the reply, in the log, at the backend; also on errors."""
    headers = {"X-Request-ID": "client-1"}
    assert stand.call("POST", CHAT, json=chat_body(), headers=headers).status == 200
    [request] = stand.backends.first.requests
    assert request.header("X-Request-ID") == "client-1"
    for path in ("/healthz", "/nothing", "/v1/models"):
        reply = stand.call("GET", path, key=None, headers=headers)
        assert reply.header("X-Request-ID") == "client-1"
    assert {line["request_id"] for line in stand.lines} == {"client-1"}


@pytest.mark.parametrize("header", [None, "", "a b", "x" * 129, "a\x7f", "{}"])
def test_a_request_without_a_usable_id_gets_one(stand: RouterStand, header: str | None) -> None:
    """A new UUID for each request."""
    headers = {} if header is None else {"X-Request-ID": header}
    made = [stand.call("GET", "/healthz", headers=headers).header("X-Request-ID") for _ in "12"]
    assert len({uuid.UUID(one) for one in made if one}) == 2


def test_a_trace_is_continued(stand: RouterStand) -> None:
    """The router's span is a child of the caller's, the backend's a child of the router's."""
    stand.call("POST", CHAT, json=chat_body(), headers={"traceparent": TRACEPARENT})
    _, trace_id, caller_span, flags = TRACEPARENT.split("-")
    [request] = stand.backends.first.requests
    assert request.values("traceparent") == [f"00-{trace_id}-{stand.line['span_id']}-{flags}"]
    assert stand.line["trace_id"] == trace_id
    assert stand.line["span_id"] != caller_span


@pytest.mark.parametrize("header", ["", "x", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_trace_that_cannot_be_read_begins_anew(stand: RouterStand, header: str) -> None:
    """A broken header is nobody's fault but its sender's; the call goes on."""
    reply = stand.call("POST", CHAT, json=chat_body(), headers={"traceparent": header})
    assert reply.status == 200
    [request] = stand.backends.first.requests
    assert (request.header("traceparent") or "").split("-")[1] == stand.line["trace_id"]
    assert set(stand.line["trace_id"]) != {"0"}


# --- paths and methods ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "path"), [(dialect, path) for dialect in UNKNOWN for path in UNKNOWN[dialect]]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404_in_its_dialect(
    stand: RouterStand, dialect: str, path: str, method: str
) -> None:
    """P15: JSON, whoever asks and whatever is sent along."""
    for key in (None, "main"):
        reply = stand.call(method, path, key=key, body=b"{" if method == "POST" else b"")
        assert reply.status == 404
        assert set(reply.json) == ERROR_FIELDS[dialect]
    assert stand.received() == 0


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/inference", "POST"),
        ("PUT", CHAT, "POST"),
        ("DELETE", "/v1/models/gpt-4o", "GET, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PATCH", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/v1/inference", "POST"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("TRACE", "/v1/embeddings", "POST"),
        ("BREW", "/v1/status/readyz", "GET, HEAD"),
        ("x" * 40, "/v1/completions", "POST"),
    ],
)
def test_another_method_is_405_with_allow(
    stand: RouterStand, method: str, path: str, allow: str
) -> None:
    """P15: OPTIONS used to walk through authentication and end in 415."""
    for key in (None, "main"):
        reply = stand.call(method, path, key=key)
        assert (reply.status, reply.header("Allow")) == (405, allow)
    assert stand.received() == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../v1/models", "/v1/./models", "/v1/%2e%2e/models", "/v1/models/%2e", "/v1//models",
        "//v1/models", "/v1/models/a%2f..%2fb",
        "/v1/models/a%5cb", "/v1/models/a\\b", "/v1/models/%00",
        "/v1/models/%", "/v1/models/%g1", "/v1/models/a%0d%0aX: y", "/healthz%2f", "/./healthz",
    ],
)  # fmt: skip
def test_an_ambiguous_path_is_refused(stand: RouterStand, path: str) -> None:
    """Z1: 400 before anything else, with a key or without."""
    for key in (None, "main"):
        reply = stand.call("GET", path, key=key)
        assert reply.status == 400
        assert "ambiguous" in reply.body.decode()
    assert stand.received() == 0


@pytest.mark.parametrize("target", ["http://127.0.0.1:8080/v1/models", "/v1/models?x=../%2f//"])
def test_an_unusual_target_is_not_an_ambiguous_one(stand: RouterStand, target: str) -> None:
    """RFC 9112 §3.2.2: the absolute form is the same request; a query may hold anything."""
    opened = stand.open("GET", target, PATH_INFO="/v1/models")
    assert opened.read().status == 200


@pytest.mark.parametrize("path", ["/v1/models/caf%C3%A9", "/v1/models/%ff%fe", "/v1/models/a%20b"])
def test_an_odd_name_is_only_odd(stand: RouterStand, path: str) -> None:
    """Whatever bytes a name decodes to, it is a model that is not there."""
    assert stand.call("GET", path).status == 404


@pytest.mark.parametrize("path", KEYLESS)
def test_status_needs_no_key_and_minds_no_body(stand: RouterStand, path: str) -> None:
    """A probe that sends too much is answered like any other."""
    assert stand.call("GET", path, key=None, body=b"\xff" * 100).status == 200


# --- bodies ---------------------------------------------------------------------------------

LIMIT_BYTES = 1_100_000
GOOD = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}'
HEADERS = {"Content-Type": "application/json"}
BAD_BODIES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "empty": (400, b"", {}),
    "not JSON": (400, b"model=gpt-4o", {}),
    "cut off": (400, GOOD[:-1], {}),
    "two values": (400, GOOD + GOOD, {}),
    "an array": (400, b"[" + GOOD + b"]", {}),
    "a string": (400, b'"x"', {}),
    "null": (400, b"null", {}),
    "no fields": (400, b"{}", {}),
    "wrong types": (400, b'{"model": 1, "messages": "x", "request_id": [], "payload": {}}', {}),
    "a name twice": (400, GOOD[:-1] + b', "model": "gpt-4o"}', {}),
    "a name twice inside": (400, GOOD[:-1] + b', "x": [{"a": {"b": 1, "b": 1}}]}', {}),
    "deep arrays": (400, GOOD[:-1] + b', "x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", {}),
    "deep objects": (400, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, {}),
    "never closed": (400, b"[" * 90_000, {}),
    "too many elements": (413, b"[" * 1_000_000, {}),
    "a huge integer": (400, GOOD[:-1] + b', "seed": ' + b"9" * 5_000 + b"}", {}),
    "65 bits": (400, GOOD[:-1] + b', "seed": 18446744073709551616}', {}),
    "NaN": (400, GOOD[:-1] + b', "temperature": NaN}', {}),
    "Infinity": (400, GOOD[:-1] + b', "temperature": -Infinity}', {}),
    "no UTF-8": (400, GOOD.replace(b'"x"', b'"\xff\xfe"'), {}),
    "a surrogate in UTF-8": (400, GOOD.replace(b'"x"', b'"\xed\xa0\x80"'), {}),
    "a lone surrogate": (400, GOOD.replace(b'"x"', b'"\\udc00"'), {}),
    "UTF-16": (400, GOOD.decode().encode("utf-16"), {}),
    "a byte order mark": (400, b"\xef\xbb\xbf" + GOOD, {}),
    "truncated": (400, GOOD, {"Content-Length": str(len(GOOD) + 1)}),
    "no length at all": (400, GOOD, {"Content-Length": ""}),
    "a length of letters": (400, GOOD, {"Content-Length": "many"}),
    "a length of thousands of digits": (400, GOOD, {"Content-Length": "9" * 5_000}),
    "over the limit": (413, b" " * (LIMIT_BYTES + 1), {}),
    "said to be over the limit": (413, b"", {"Content-Length": "99999999999"}),
    "chunked over the limit": (413, b" " * (LIMIT_BYTES + 1), {"Transfer-Encoding": "chunked"}),
    "text": (415, GOOD, {"Content-Type": "text/plain"}),
    "a form": (415, GOOD, {"Content-Type": "application/x-www-form-urlencoded"}),
    "of no type": (415, GOOD, {"Content-Type": ""}),
    "compressed": (415, GOOD, {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("path", ["/v1/inference", CHAT, "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_ends_here(world: World, path: str, case: str) -> None:
    """P15: a 4xx in the right dialect, one line in the log, and no backend hears of it."""
    status, body, headers = BAD_BODIES[case]
    stand = world.stand(settings=replace(world.settings, max_body_bytes=LIMIT_BYTES))
    environ = {} if "Transfer-Encoding" not in headers else {"CONTENT_LENGTH": ""}
    reply = stand.call("POST", path, body=body, headers={**HEADERS, **headers}, **environ)
    assert reply.status == status
    assert stand.line["status"] == status
    assert stand.received() == 0


def test_a_chunked_body_is_as_good_as_any(stand: RouterStand) -> None:
    """Without a length; what goes to the backend has one."""
    headers = {**HEADERS, "Transfer-Encoding": "chunked"}
    reply = stand.call("POST", CHAT, body=GOOD, headers=headers, CONTENT_LENGTH="")
    assert reply.status == 200
    [request] = stand.backends.first.requests
    assert (request.header("content-length"), request.body) == (str(len(GOOD)), GOOD)


# --- who called -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "198.51.100.1", "192.0.2.7"),
        (1, None, "192.0.2.7"),
        (1, "198.51.100.1", "198.51.100.1"),
        (1, "203.0.113.9, 198.51.100.1", "198.51.100.1"),
        (2, "203.0.113.9, 198.51.100.1", "203.0.113.9"),
        (2, "6.6.6.6, 203.0.113.9, 198.51.100.1", "203.0.113.9"),
        (2, "198.51.100.1", "192.0.2.7"),
    ],
)
def test_the_address_is_that_which_trusted_proxies_saw(
    world: World, proxies: int, forwarded: str | None, address: str
) -> None:
    """What a client says of itself counts for nothing; what our own proxies say does."""
    stand = world.stand(settings=replace(world.settings, trusted_proxies=proxies))
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    stand.call("POST", CHAT, json=chat_body(), headers=headers)
    assert stand.line["remote_addr"] == address
    [request] = stand.backends.first.requests
    assert request.header("X-Forwarded-For") is None


def test_a_forwarded_port_opens_no_door(world: World) -> None:
    """Z2: trusting a proxy does not make its clients operators."""
    stand = world.stand(settings=replace(world.settings, trusted_proxies=1))
    stand.app.add_url_rule("/metrics", endpoint="prometheus_metrics", view_func=lambda: "secret")
    headers = {"X-Forwarded-Port": "8081", "X-Forwarded-Host": "127.0.0.1:8081"}
    assert stand.call("GET", "/metrics", headers=headers).status == 404


# --- one application, two workers -----------------------------------------------------------


def test_applications_do_not_share_what_they_serve_with(world: World) -> None:
    """Each keeps to the services that it was made with."""
    one, other = world.stand(), world.stand()
    one.chat()
    assert (len(one.lines), len(other.lines)) == (1, 0)
    assert create_app(one.services) is not one.app


def test_no_session_and_no_cookie(stand: RouterStand) -> None:
    """The gateway keeps no state with its clients."""
    for reply in (stand.chat(), stand.call("GET", "/healthz", headers={"Cookie": "session=x"})):
        assert reply.header("Set-Cookie") is None


def test_both_dialects_answer_a_defect_alike(
    stand: RouterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 500 that says nothing, in the shape of the path."""

    def fail(*_: Any) -> None:
        raise ValueError("of all things")

    monkeypatch.setattr(type(stand.services.state), "document", fail)
    for path, body in (("/v1/inference", native_body()), (CHAT, chat_body())):
        reply = stand.call("POST", path, json=body)
        assert reply.status == 500
        assert b"of all things" not in reply.body
    assert stand.call("GET", "/readyz", key=None).status == 500


@pytest.mark.parametrize("endpoint", ["/v1/models", "/v1/inference", "/v1/nowhere"])
def test_the_ops_listener_serves_no_calls(world: World, endpoint: str) -> None:
    """What limits the public listener would not hold there; health is served on both."""
    stand = world.stand()
    ops = str(stand.services.settings.ops_bind.port)
    assert stand.call("GET", endpoint, promised=False, SERVER_PORT=ops).status == 404
    assert stand.call("GET", "/healthz", SERVER_PORT=ops).status == 200
