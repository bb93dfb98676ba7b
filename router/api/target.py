"""The request target as it stood on the wire, and which targets are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from router.errors import InvalidRequest

# Whatever two parsers on the way may read as two different paths.
_AMBIGUOUS: Final = re.compile(
    r"//|\\|#|%(?:2[ef]|5c|00|25|0[ad])|(?:^|/)\.{1,2}(?:/|$)", re.IGNORECASE
)
_SUSPICIOUS: Final = re.compile(r"[%\\#]|//|/\.")
_MODELS: Final = "/v1/models/"
_ENCODED_SLASH: Final = re.compile("%2f", re.IGNORECASE)
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9a-fA-F]{2})")


def raw_target(environ: Mapping[str, Any]) -> str:
    """The target in origin form, undecoded: path and, after a ``?``, the query."""
    raw: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or environ["PATH_INFO"]
    if raw.startswith("/"):
        return raw
    parts = urlsplit(raw)  # absolute form, which RFC 9112 §3.2.2 makes servers accept
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path


def refuse_ambiguous(environ: Mapping[str, Any]) -> None:
    """Raises ``InvalidRequest`` for dot segments, encoded slashes, empty segments and the like."""
    try:
        path = raw_target(environ).partition("?")[0]
        if path.startswith(_MODELS):
            # Ids of models may contain slashes, which the SDKs encode. Nothing behind us sees them.
            path = _ENCODED_SLASH.sub("/", path)
    except ValueError:
        raise InvalidRequest("the request target is malformed", field="path") from None
    if _SUSPICIOUS.search(path) and (_AMBIGUOUS.search(path) or _BAD_ESCAPE.search(path)):
        raise InvalidRequest("the path is ambiguous", field="path")
