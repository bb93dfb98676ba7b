"""Which of a client's headers may be forwarded to a backend, by their names in lower case."""

from __future__ import annotations

import re
from typing import Final

from router.providers.provider_table import PROVIDERS

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
    header
    for headers in (
        *(names.split() for names in _WITHHELD.values()),
        *(provider.reserved_headers for provider in PROVIDERS.values()),
    )
    for header in headers
)
_NEVER_PREFIXES: Final = (
    # Written by the router, or for it.
    *("x-forwarded-", "x-router-", "x-routing-"),
    # What proxies that check identities say of a client, and tokens of clouds and vendors.
    *("cf-", "x-goog-", "x-amz-", "x-amzn-", "x-aws-", "x-ms-", "x-azure-", "x-google-", "x-gcp-"),
    *("x-auth-", "x-authenticated-", "x-authentik-", "x-pomerium-", "x-vouch-", "x-envoy-"),
    *("x-remote-", "remote-", "x-webauth-", "x-ssl-", "ssl-", "x-client-", "x-vault-"),
    *("x-consul-", "x-github-", "x-gitlab-", "x-okta-", "x-csrf", "x-xsrf", "proxy-", "sec-"),
    *("x-litellm-", "x-portkey-", "helicone-", "x-bf-", "x-kong-", "x-consumer-", "x-credential-"),
    *("x-api-", "x-access-", "x-session", "x-token", "x-secret", "x-user", "x-jwt"),
)
_SECRET_WORDS: Final = frozenset(
    {
        *("token", "tokens", "secret", "password", "credential", "credentials", "key", "apikey"),
        *("jwt", "cookie", "assertion", "auth", "authorization", "authentication", "identity"),
    }
)
"""What a part of a header's name is called where the value proves who somebody is."""

FORWARDED: Final = (
    # Content negotiation (RFC 9110 §12.5), with the name of the client's program.
    *("accept", "accept-language", "user-agent"),
    # Tracing; `traceparent` is written anew.
    "tracestate",
    # The dialects' own: of a call that may be repeated, and features in beta, as far as the model
    # allows them.
    *("idempotency-key", "anthropic-beta", "openai-beta"),
)
"""What backends may see of a client's headers. A backend's ``forward_headers`` adds others."""

MAX_NAME_CHARS: Final = 64
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]*")


def may_be_forwarded(header: str) -> bool:
    """Whether a backend may have this header, in lower case, forwarded to it.

    Never what authenticates or identifies anybody, what frames a message, what is for one hop, and
    what the router writes itself.
    """
    return (
        len(header) <= MAX_NAME_CHARS
        and _NAME.fullmatch(header) is not None
        and header not in _NEVER
        and not header.startswith(_NEVER_PREFIXES)
        and _SECRET_WORDS.isdisjoint(header.removesuffix("idempotency-key").split("-"))
    )
