"""What of a client's head a backend may see (Z1, P17), and how heads are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.headers import forwardable, write_head

SECRET = "rtr_test_" + "s3cret" * 6
OTHER_KEY = "rtr_live_" + "A1b2" * 8 + "_Abc123"


def environ(**headers: str) -> dict[str, object]:
    """What a WSGI server makes of a request with these headers."""
    found: dict[str, object] = {f"HTTP_{name}": value for name, value in headers.items()}
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/v1/chat/completions",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "2",
        "wsgi.version": (1, 0),
        "gunicorn.socket": object(),
        **found,
    }


@pytest.mark.parametrize(
    "name",
    [
        # credentials
        "Authorization", "Proxy-Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key",
        "Cookie", "Cookie2", "X-Auth-Token", "X-Access-Token", "Ocp-Apim-Subscription-Key",
        # framing
        "Host", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding",
        "Content-MD5", "Content-Digest", "Repr-Digest", "Digest",
        # hop by hop
        "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "TE", "Trailer",
        "Trailers", "Upgrade", "HTTP2-Settings", "Expect",
        # what the router writes itself
        "Accept-Encoding", "X-Request-ID", "Traceparent", "X-Router-Signature", "X-Router-Nonce",
        "X-Router-Timestamp", "X-Router-Anything", "X-Routing-Backend",
        # the client's network
        "Forwarded", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
        "X-Forwarded-Prefix", "X-Original-Forwarded-For", "Via", "X-Real-IP", "Client-IP",
        "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "CF-Ray", "Origin", "Referer",
        # what selects another price, unless the model allows it
        "OpenAI-Beta", "Anthropic-Beta", "X-Amzn-Bedrock-Service-Tier",
        "X-Amzn-Bedrock-PerformanceConfig-Latency", "X-Vertex-AI-LLM-Request-Type",
        "X-Vertex-AI-LLM-Shared-Request-Type",
        # who pays, and in which dialect
        "OpenAI-Organization", "OpenAI-Project", "Anthropic-Version",
        # what some servers take for the method, the path, the host or a proxy
        "X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL",
        "X-Rewrite-URL", "X-Host", "X-Original-Host", "Proxy",
    ],
)  # fmt: skip
def test_some_headers_never_reach_a_backend(name: str) -> None:
    """Whatever their value, and whatever else is sent."""
    key = name.upper().replace("-", "_")
    assert forwardable(environ(**{key: "harmless", "ACCEPT": "*/*"}), ()) == [("Accept", "*/*")]


@pytest.mark.parametrize(
    "name",
    ["Accept", "User-Agent", "Idempotency-Key", "Tracestate", "Baggage",
     "X-Stainless-Lang", "X-Custom", "X.Dotted", "X!Odd~Name"],
)  # fmt: skip
def test_all_other_headers_pass(name: str) -> None:
    """What we do not know is the client's and the backend's business."""
    key = name.upper().replace("-", "_")
    [(shown, value)] = forwardable(environ(**{key: "a value, with \t tab"}), (SECRET,))
    assert (shown.lower(), value) == (name.lower(), "a value, with \t tab")


def test_betas_pass_that_the_model_allows() -> None:
    """Each by its name, the others are left out."""
    sent = environ(ANTHROPIC_BETA="files-api-2025-04-14, context-1m-2025-08-07", OPENAI_BETA="x=v2")
    allow = ("anthropic-beta:context-1m-2025-08-07",)
    assert forwardable(sent, (), allow) == [("Anthropic-Beta", "context-1m-2025-08-07")]


def test_only_headers_are_looked_at() -> None:
    """Nothing of the server's own environment goes out."""
    assert forwardable(environ(), ()) == []
    assert forwardable({"HTTP_X_ODD": object(), "HTTP_": "x"}, ()) == []


@pytest.mark.parametrize(
    "connection",
    ["X-Hop", "x-hop", "close, X-Hop", "X-Hop,close", "keep-alive ,\tx-HOP , X-Third", " X-Hop "],
)
def test_what_connection_names_stays_here(connection: str) -> None:
    """Such headers are meant for this hop only (RFC 9110 §7.6.1)."""
    headers = {"CONNECTION": connection, "X_HOP": "1", "X_KEPT": "2"}
    assert forwardable(environ(**headers), ()) == [("X-Kept", "2")]


@pytest.mark.parametrize("connection", ["", "close", "Keep-Alive", ",,", " , ", "upgrade"])
def test_connection_may_name_nothing(connection: str) -> None:
    """Ordinary values of ``Connection`` cost no header."""
    headers = {"CONNECTION": connection, "X_KEPT": "2"}
    assert forwardable(environ(**headers), ()) == [("X-Kept", "2")]


@pytest.mark.parametrize(
    "value",
    [SECRET, f"Bearer {SECRET}", f"prefix{SECRET}suffix", f"a; key={SECRET}; b", OTHER_KEY,
     f"Basic {OTHER_KEY}", "rsk_" + "0a" * 32],
)  # fmt: skip
def test_a_secret_stays_here_under_any_name(value: str) -> None:
    """A header that holds the client's key, or any key of ours, is not copied (P17)."""
    headers = {"X_CUSTOM": value, "USER_AGENT": value, "X_KEPT": "fine"}
    assert forwardable(environ(**headers), ("unrelated-token", SECRET)) == [("X-Kept", "fine")]


@pytest.mark.parametrize(
    "value",
    ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\x00b", "\x1b[0m", "a\x7f", "a\x0bb", "ünïcode ☃"],
)
def test_a_value_that_could_end_its_line_stays_here(value: str) -> None:
    """No control character and nothing outside Latin-1 reaches the wire."""
    assert forwardable(environ(X_ODD=value, X_KEPT="1"), ()) == [("X-Kept", "1")]


@pytest.mark.parametrize(
    "name",
    ["X\r\nEVIL", "X: Y", "X Y", "X\x00", "", "É", "X(Y)", "X,Y", "X;Y", 'X"', "X/Y", "X\t"],
)
def test_a_name_that_is_no_token_stays_here(name: str) -> None:
    """A server that lets such a name pass is not trusted with our request's head."""
    assert forwardable(environ(**{name: "1", "X_KEPT": "1"}), ()) == [("X-Kept", "1")]


@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=10),
    st.text(max_size=30),
)
def test_no_client_can_write_a_line_of_its_own(headers: dict[str, str], connection: str) -> None:
    """Names and values of any text at all give at most one line a header."""
    kept = forwardable(environ(**headers, CONNECTION=connection), (SECRET,))
    wire = write_head("POST / HTTP/1.1", kept)
    lines = wire.split(b"\r\n")
    assert len(lines) == len(kept) + 2
    assert b"\n" not in wire.replace(b"\r\n", b"")
    assert b"\r" not in wire.replace(b"\r\n", b"")
    assert len(kept) <= len(headers)


def test_a_head_is_a_request_line_and_headers() -> None:
    """Each line ends in CR LF; length and blank line are added per call."""
    head = write_head("POST /v1 HTTP/1.1", [("Host", "gpu:8000"), ("X-Name", "n\xe9")])
    assert head == b"POST /v1 HTTP/1.1\r\nHost: gpu:8000\r\nX-Name: n\xe9\r\n"
