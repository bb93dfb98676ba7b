"""What of a client's head arrives at a live backend, on a socket (Z1, P17)."""

from __future__ import annotations

from tests.fakes.router_stand import RouterStand, chat_body
from tests.unit.upstream.test_headers import ALLOWED, MERELY_UNKNOWN, NEVER, WITHHELD

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
READ_BY_THE_ROUTER = {
    *("authorization", "x-api-key", "content-length", "content-type", "content-encoding"),
    *("transfer-encoding", "host", "x-router-signature", "x-router-nonce", "x-router-timestamp"),
    *("x-request-id", "traceparent"),
}
"""A call with other values of these is another call."""
WRITTEN_BY_THE_ROUTER = {
    *("host", "authorization", "content-type", "content-length", "accept-encoding"),
    *("x-request-id", "traceparent", "connection"),
}


def test_only_the_allow_list_arrives_on_the_wire(stand: RouterStand) -> None:
    """All names at once, each with a value that can be told from what the router writes."""
    names = [*WITHHELD, *NEVER, *MERELY_UNKNOWN, *ALLOWED]
    sent = {name: "of-a-client" for name in names if name.lower() not in READ_BY_THE_ROUTER}
    sent |= {"Tracestate": "vendor=of-a-client", "Traceparent": TRACE}
    sent["Connection"] = "close"
    assert len(sent) >= 152
    reply = stand.call("POST", "/v1/chat/completions", json=chat_body(), headers=sent)
    assert reply.status == 200
    [request] = stand.backends.first.requests
    arrived = {name.lower(): value for name, value in request.headers}
    clients = {name for name, value in arrived.items() if "of-a-client" in value}
    assert clients == {name.lower() for name in ALLOWED}
    assert arrived.keys() - clients <= WRITTEN_BY_THE_ROUTER


def test_a_backend_that_names_further_headers_gets_them_once(stand: RouterStand) -> None:
    """Also one that all backends get anyway; a backend that names none gets none."""
    sent = {"Baggage": "tenant=1", "Accept": "text/plain"}
    for model in ("plain", "gpt-4o"):
        body = chat_body(model)
        assert stand.call("POST", "/v1/chat/completions", json=body, headers=sent).status == 200
    [named], [other] = stand.backends.plain.requests, stand.backends.first.requests
    for request, names in ((named, ["accept", "baggage"]), (other, ["accept"])):
        arrived = sorted(name.lower() for name, _ in request.headers)
        assert [name for name in arrived if name in ("accept", "baggage")] == names
