"""Which of the client's headers a backend may see, and how a request head is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from router.providers.table import PROVIDERS
from router.telemetry.redaction import holds_secret

# Names as WSGI spells them. Headers listed here never reach a backend:
_NEVER: Final = frozenset(
    {
        # credentials and identity of the client
        "HTTP_AUTHORIZATION",
        "HTTP_PROXY_AUTHORIZATION",
        "HTTP_X_API_KEY",
        "HTTP_API_KEY",
        "HTTP_X_GOOG_API_KEY",
        "HTTP_COOKIE",
        "HTTP_COOKIE2",
        "HTTP_X_AUTH_TOKEN",
        "HTTP_X_ACCESS_TOKEN",
        "HTTP_OCP_APIM_SUBSCRIPTION_KEY",
        # framing and hop-by-hop (RFC 9110 §7.6.1, RFC 9112 §6)
        "HTTP_HOST",
        "HTTP_CONTENT_LENGTH",
        "HTTP_CONTENT_TYPE",
        "HTTP_CONTENT_ENCODING",
        "HTTP_TRANSFER_ENCODING",
        "HTTP_CONNECTION",
        "HTTP_KEEP_ALIVE",
        "HTTP_PROXY_CONNECTION",
        "HTTP_PROXY_AUTHENTICATE",
        "HTTP_TE",
        "HTTP_TRAILER",
        "HTTP_TRAILERS",
        "HTTP_UPGRADE",
        "HTTP_HTTP2_SETTINGS",
        "HTTP_EXPECT",
        # digests of a body that may be written anew
        "HTTP_CONTENT_MD5",
        "HTTP_CONTENT_DIGEST",
        "HTTP_REPR_DIGEST",
        "HTTP_DIGEST",
        # conditions and parts: a backend's 304 or 206 would be no reply to a call
        "HTTP_IF_MATCH",
        "HTTP_IF_NONE_MATCH",
        "HTTP_IF_MODIFIED_SINCE",
        "HTTP_IF_UNMODIFIED_SINCE",
        "HTTP_IF_RANGE",
        "HTTP_RANGE",
        # written by the router
        "HTTP_ACCEPT_ENCODING",
        "HTTP_X_REQUEST_ID",
        "HTTP_TRACEPARENT",
        # about the client's network, not the backend's business
        "HTTP_FORWARDED",
        "HTTP_X_FORWARDED",
        "HTTP_CLIENT_IP",
        "HTTP_X_CLIENT_IP",
        "HTTP_X_CLUSTER_CLIENT_IP",
        "HTTP_X_ORIGINAL_FORWARDED_FOR",
        "HTTP_PROXY",  # CGI programs take it for the variable of that name (CVE-2016-5385)
        "HTTP_VIA",
        "HTTP_X_REAL_IP",
        "HTTP_TRUE_CLIENT_IP",
        "HTTP_ORIGIN",
        "HTTP_REFERER",
        # servers that let a header replace the request line or the host
        "HTTP_X_HTTP_METHOD",
        "HTTP_X_HTTP_METHOD_OVERRIDE",
        "HTTP_X_METHOD_OVERRIDE",
        "HTTP_X_ORIGINAL_URL",
        "HTTP_X_ORIGINAL_HOST",
        "HTTP_X_REWRITE_URL",
        "HTTP_X_HOST",
    }
) | {
    "HTTP_" + name.upper().replace("-", "_")
    for provider in PROVIDERS.values()
    for name in provider.reserved_headers
}
_NEVER_PREFIXES: Final = ("HTTP_X_FORWARDED_", "HTTP_X_ROUTER_", "HTTP_X_ROUTING_", "HTTP_CF_")
_UNSAFE: Final = re.compile(r"[^\t -~\x80-\xff]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def forwardable(environ: Mapping[str, object], secrets: tuple[str, ...]) -> list[tuple[str, str]]:
    """The client's end-to-end headers that a backend may see.

    ``environ`` spells headers as WSGI does. A header whose value contains one of ``secrets``, or
    anything that has the shape of a secret, is not forwarded either, whatever its name.
    """
    named = _connection_names(environ.get("HTTP_CONNECTION"))
    kept: list[tuple[str, str]] = []
    for name, value in environ.items():
        if not name.startswith("HTTP_") or name in named or not isinstance(value, str):
            continue
        shown = _shown_name(name)
        if shown is None or _UNSAFE.search(value):
            continue
        if any(secret in value for secret in secrets) or holds_secret(value):
            continue
        kept.append((shown, value))
    return kept


@lru_cache(maxsize=1024)
def _shown_name(name: str) -> str | None:
    """The header's name on the wire; ``None`` when no backend may see it."""
    if name in _NEVER or name.startswith(_NEVER_PREFIXES) or not _TOKEN.fullmatch(name, 5):
        return None
    return name[5:].replace("_", "-").title()


def _connection_names(connection: object) -> frozenset[str]:
    """Headers that ``Connection`` declares hop-by-hop."""
    if not isinstance(connection, str) or connection.lower() in ("keep-alive", "close", ""):
        return frozenset()
    return frozenset(
        "HTTP_" + token.strip().upper().replace("-", "_") for token in connection.split(",")
    )


def write_head(request_line: str, headers: list[tuple[str, str]]) -> bytes:
    """A request head up to, not including, ``Content-Length`` and the blank line."""
    lines = [request_line, *(f"{name}: {value}" for name, value in headers), ""]
    return "\r\n".join(lines).encode("latin-1")
