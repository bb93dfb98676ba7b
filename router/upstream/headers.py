"""Which of the client's headers a backend may see, and how a request head is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final

from router.pricing.selection import BETA_HEADERS, allowed_betas
from router.providers.client_headers import FORWARDED
from router.telemetry.redaction import holds_secret

_UNSAFE: Final = re.compile(r"[^\t -~\x80-\xff]")


@lru_cache(maxsize=1024)
def _wsgi_name(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


def forwardable(
    environ: Mapping[str, object],
    secrets: tuple[str, ...],
    allow: Collection[str] = (),
    names: Collection[str] = FORWARDED,
) -> list[tuple[str, str]]:
    """The client's headers of these ``names``, which are in lower case; of features in beta those
    that the model allows.

    ``environ`` spells headers as WSGI does. A header whose value contains one of ``secrets``, or
    anything that has the shape of a secret, is not forwarded either, whatever its name.
    """
    named = _connection_names(environ.get("HTTP_CONNECTION"))
    kept: list[tuple[str, str]] = []
    for header in names:
        name = _wsgi_name(header)
        value = environ.get(name)
        if not isinstance(value, str) or name in named or _UNSAFE.search(value):
            continue
        if header in BETA_HEADERS:
            value = allowed_betas(value, header, allow)
            if not value:
                continue
        if any(secret in value for secret in secrets) or holds_secret(value):
            continue
        kept.append((header, value))
    return kept


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
