"""What of a client's head a backend may see (Z1, P17), and how heads are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from router.config.schema.parts import BackendSchema
from router.pricing.selection import BETA_HEADERS
from router.upstream.headers import forwardable, write_head

SECRET = "rtr_test_" + "s3cret" * 6
BACKEND = {"id": "b", "kind": "openai", "base_url": "https://api.example/v1"}
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


WITHHELD = [
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
    ]  # fmt: skip


@pytest.mark.parametrize("name", WITHHELD)
def test_some_headers_never_reach_a_backend(name: str) -> None:
    """Whatever their value, and whatever else is sent."""
    key = name.upper().replace("-", "_")
    assert forwardable(environ(**{key: "harmless", "ACCEPT": "*/*"}), ()) == [("accept", "*/*")]


ALLOWED = ("Accept", "Accept-Language", "User-Agent", "Idempotency-Key", "Tracestate")
NEVER = [
    # What identity proxies say of a client, tokens of clouds and vendors, other gateways.
    "CF-Access-Client-Id", "CF-Access-Client-Secret", "CF-Access-Jwt-Assertion",
    "X-Goog-IAP-JWT-Assertion", "X-Goog-Authenticated-User-Email", "X-Goog-User-Project",
    "X-Goog-Api-Client", "X-Goog-Request-Params", "X-Amzn-Oidc-Data", "X-Amzn-Oidc-Identity",
    "X-Amzn-Oidc-Accesstoken", "X-Amz-Security-Token", "X-Amz-Date", "X-Amz-Content-Sha256",
    "X-Amzn-Trace-Id", "X-MS-Client-Principal", "X-MS-Client-Principal-Id",
    "X-MS-Token-AAD-Access-Token", "X-MS-Token-AAD-Id-Token", "X-MS-Request-Id",
    "X-Azure-FDID", "X-Azure-Ref", "X-Auth-Request-User", "X-Auth-Request-Email",
    "X-Auth-Request-Access-Token", "X-Authenticated-User", "X-Authentik-Username",
    "X-Pomerium-Jwt-Assertion", "X-Vouch-User", "X-Remote-User", "Remote-User",
    "X-WebAuth-User", "X-SSL-Client-Cert", "SSL-Client-Verify", "X-Client-Cert",
    "X-Forwarded-Client-Cert", "X-Forwarded-User", "X-Forwarded-Email",
    "X-Forwarded-Access-Token", "X-Envoy-Original-Path", "X-Envoy-External-Address",
    "X-Vault-Token", "X-Vault-Namespace", "X-Consul-Token", "X-GitHub-Token",
    "X-GitLab-Token", "X-Okta-User", "X-CSRF-Token", "X-XSRF-Token", "X-User-Id",
    "X-User-Email", "X-Session-Id", "X-Session-Token", "X-JWT", "X-Token", "X-Secret",
    "X-Api-Token", "X-Access-Key", "X-Credential-Username", "X-Consumer-Id",
    "X-Consumer-Username", "Sec-Fetch-Site", "Sec-WebSocket-Key", "Sec-CH-UA",
    "X-Portkey-Provider", "X-Portkey-Config", "X-Portkey-Virtual-Key", "Helicone-Auth",
    "Helicone-Target-Url", "X-LiteLLM-Tags", "X-LiteLLM-Timeout", "X-Bf-Vk",
    "X-Kong-Upstream-Latency", "X-Acme-Token", "X-IBM-Client-Secret", "DD-API-Key",
    "X-Functions-Key", "X-Shopify-Access-Token", "X-Acme-JWT-Assertion", "Acme-Auth",
]  # fmt: skip
MERELY_UNKNOWN = [
    "X-Idempotency-Key",
    "Baggage", "B3", "X-B3-TraceId", "X-Datadog-Trace-Id", "Sentry-Trace", "Uber-Trace-Id",
    "X-Cloud-Trace-Context", "X-Stainless-Lang", "X-Stainless-Retry-Count", "X-Custom",
    "Accept-Charset", "Cache-Control", "Pragma", "DNT", "Priority", "Save-Data", "From",
    "Date", "Link", "Prefer", "Max-Forwards", "Upgrade-Insecure-Requests", "X-Title",
    "HTTP-Referer", "X-Requested-With", "Anthropic-Dangerous-Direct-Browser-Access",
    "X.Dotted", "X!Odd~Name",
]  # fmt: skip


def test_only_the_allow_list_arrives() -> None:
    """152 names and more, each of them alone and all of them at once."""
    withheld = [*WITHHELD, *NEVER, *MERELY_UNKNOWN]
    assert len({name.lower() for name in (*withheld, *ALLOWED)}) >= 152
    allowed = [(name.lower(), "x") for name in ALLOWED]
    sent = {name.upper().replace("-", "_"): "x" for name in (*withheld, *ALLOWED)}
    assert sorted(forwardable(environ(**sent), ())) == sorted(allowed)
    for name in withheld:
        assert forwardable(environ(**{name.upper().replace("-", "_"): "x"}), ()) == [], name


@pytest.mark.parametrize("name", MERELY_UNKNOWN[:-2])
def test_a_backend_may_be_given_more(name: str) -> None:
    """By its ``forward_headers``, however the document writes the name."""
    backend = BackendSchema().load({**BACKEND, "forward_headers": [name]})
    assert backend.forward_headers == (name.lower(),)
    sent = environ(**{name.upper().replace("-", "_"): "x", "X_OTHER": "y"})
    assert forwardable(sent, (), names=backend.forward_headers) == [(name.lower(), "x")]


@pytest.mark.parametrize("name", [*WITHHELD, *NEVER, "X.Dotted", "X!Odd~Name", "x y", "", "x" * 65])
def test_no_document_can_give_these(name: str) -> None:
    """What says who somebody is stays here whatever an operator writes; beta headers have their
    own list."""
    if name.lower() in BETA_HEADERS:
        return
    with pytest.raises(ValidationError) as refusal:
        BackendSchema().load({**BACKEND, "forward_headers": [name]})
    assert set(refusal.value.messages_dict) == {"forward_headers"}


def test_betas_pass_that_the_model_allows() -> None:
    """Each by its name, the others are left out."""
    sent = environ(ANTHROPIC_BETA="files-api-2025-04-14, context-1m-2025-08-07", OPENAI_BETA="x=v2")
    allow = ("anthropic-beta:context-1m-2025-08-07",)
    assert forwardable(sent, (), allow) == [("anthropic-beta", "context-1m-2025-08-07")]


def test_only_headers_are_looked_at() -> None:
    """Nothing of the server's own environment goes out."""
    assert forwardable(environ(), ()) == []
    assert forwardable({"HTTP_ACCEPT": object(), "HTTP_": "x"}, ()) == []


@pytest.mark.parametrize(
    "connection",
    ["X-Hop", "x-hop", "close, X-Hop", "X-Hop,close", "keep-alive ,\tx-HOP , X-Third", " X-Hop "],
)
def test_what_connection_names_stays_here(connection: str) -> None:
    """Such headers are meant for this hop only (RFC 9110 §7.6.1)."""
    headers = {"CONNECTION": connection, "X_HOP": "1", "ACCEPT": "2"}
    names = ("x-hop", "accept")
    assert forwardable(environ(**headers), (), names=names) == [("accept", "2")]


@pytest.mark.parametrize("connection", ["", "close", "Keep-Alive", ",,", " , ", "upgrade"])
def test_connection_may_name_nothing(connection: str) -> None:
    """Ordinary values of ``Connection`` cost no header."""
    headers = {"CONNECTION": connection, "ACCEPT": "2"}
    assert forwardable(environ(**headers), ()) == [("accept", "2")]


@pytest.mark.parametrize(
    "value",
    [SECRET, f"Bearer {SECRET}", f"prefix{SECRET}suffix", f"a; key={SECRET}; b", OTHER_KEY,
     f"Basic {OTHER_KEY}", "rsk_" + "0a" * 32],
)  # fmt: skip
def test_a_secret_stays_here_under_any_name(value: str) -> None:
    """A header that holds the client's key, or any key of ours, is not copied (P17)."""
    headers = {"X_CUSTOM": value, "USER_AGENT": value, "ACCEPT": "fine"}
    names = ("x-custom", "user-agent", "accept")
    kept = forwardable(environ(**headers), ("unrelated-token", SECRET), names=names)
    assert kept == [("accept", "fine")]


@pytest.mark.parametrize(
    "value",
    ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\x00b", "\x1b[0m", "a\x7f", "a\x0bb", "ünïcode ☃"],
)
def test_a_value_that_could_end_its_line_stays_here(value: str) -> None:
    """No control character and nothing outside Latin-1 reaches the wire."""
    assert forwardable(environ(USER_AGENT=value, ACCEPT="1"), ()) == [("accept", "1")]


@pytest.mark.parametrize(
    "name",
    ["X\r\nEVIL", "X: Y", "X Y", "X\x00", "", "É", "X(Y)", "X,Y", "X;Y", 'X"', "X/Y", "X\t"],
)
def test_a_name_that_is_no_token_stays_here(name: str) -> None:
    """A server that lets such a name pass is not trusted with our request's head."""
    assert forwardable(environ(**{name: "1", "ACCEPT": "1"}), ()) == [("accept", "1")]


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
