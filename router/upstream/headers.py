"""Which of the client's headers a backend may see, and how a request head is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final

from router.pricing.selection import BETA_HEADERS, allowed_betas
from router.providers.provider_table import PROVIDERS
from router.telemetry.redaction import holds_secret


def _wsgi_name(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


_WITHHELD: Final = {
    "credentials and identity of the client": (
        "authorization proxy-authorization x-api-key api-key x-goog-api-key x-auth-token "
        "x-access-token ocp-apim-subscription-key cookie cookie2"
    ),
    "framing and hop-by-hop (RFC 9110 §7.6.1, RFC 9112 §6)": (
        "host content-length content-type content-encoding transfer-encoding connection "
        "keep-alive proxy-connection proxy-authenticate te trailer trailers upgrade "
        "http2-settings expect"
    ),
    "digests of a body that may be written anew": "content-md5 content-digest repr-digest digest",
    "conditions and parts: a backend's 304 or 206 would be no reply to a call": (
        "if-match if-none-match if-modified-since if-unmodified-since if-range range"
    ),
    "written by the router": "accept-encoding x-request-id traceparent",
    "about the client's network, not the backend's business": (
        "forwarded x-forwarded x-original-forwarded-for client-ip x-client-ip "
        "x-cluster-client-ip x-real-ip true-client-ip via origin referer"
    ),
    "selects a service tier, and with it the price, at some provider": (
        "x-amzn-bedrock-service-tier x-amzn-bedrock-performanceconfig-latency "
        "x-vertex-ai-llm-request-type x-vertex-ai-llm-shared-request-type"
    ),
    "taken by CGI programs for their variable HTTP_PROXY (CVE-2016-5385)": "proxy",
    "replaces the request line or the host on some servers": (
        "x-http-method x-http-method-override x-method-override x-original-url "
        "x-original-host x-rewrite-url x-host"
    ),
}
"""Headers that never reach a backend, by the reason why."""

_NEVER: Final = frozenset(
    _wsgi_name(header)
    for headers in (
        *(names.split() for names in _WITHHELD.values()),
        *(provider.reserved_headers for provider in PROVIDERS.values()),
    )
    for header in headers
)
_NEVER_PREFIXES: Final = ("HTTP_X_FORWARDED_", "HTTP_X_ROUTER_", "HTTP_X_ROUTING_", "HTTP_CF_")
_BETA: Final = {_wsgi_name(header): header for header in BETA_HEADERS}
_UNSAFE: Final = re.compile(r"[^\t -~\x80-\xff]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def forwardable(
    environ: Mapping[str, object], secrets: tuple[str, ...], allow: Collection[str] = ()
) -> list[tuple[str, str]]:
    """The client's end-to-end headers that a backend may see; of features in beta those that the
    model allows.

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
        if name in _BETA:
            value = allowed_betas(value, _BETA[name], allow)
            if not value:
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
