"""The request target: what is read of it, and which ones nobody may interpret."""

from __future__ import annotations

from typing import Any

import pytest

from router.api.target import raw_target, refuse_ambiguous
from router.errors import InvalidRequest


def environ(raw: str | None) -> dict[str, Any]:
    found = {"PATH_INFO": "/decoded/path"}
    return found if raw is None else {**found, "RAW_URI": raw}


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("/v1/models?a=%2F#x", "/v1/models?a=%2F#x"),
        ("http://host:1/v1/models?a=b", "/v1/models?a=b"),
        ("http://host", "/"),
        ("https://user@host/x", "/x"),
        (None, "/decoded/path"),
        ("", "/decoded/path"),
    ],
)
def test_the_target_in_origin_form(raw: str | None, target: str) -> None:
    """RFC 9112 §3.2: whichever form the request line had."""
    assert raw_target(environ(raw)) == target


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin", "/v1/./models", "/..", "/.", "/v1/models/..", "/v1/models/.",
        "/v1/%2e%2e/admin", "/v1/%2E/x", "/v1/.%2e/x", "/v1/models/a%2f%2fb",
        "/v1/models/a%2F..%2Fb", "/v1/chat%2fcompletions",
        "/v1/models/a%5cb", "/v1/models/a\\b", "//v1/models", "/v1//models", "/v1/models//",
        "/v1/models/%00", "/v1/models/a%0d%0ab", "/v1/models/%0a", "/v1/models/%", "/v1/models/%4",
        "/v1/models/%zz", "/v1/models/%%30", "/v1/models/a#b", "/v1/models/%252e%252e",
        "http://host/v1/../x", "http://[/v1/models",
    ],
)  # fmt: skip
def test_what_two_parsers_may_read_as_two_paths_is_refused(path: str) -> None:
    """Z1: dot segments, empty segments, encoded separators, broken escapes."""
    with pytest.raises(InvalidRequest) as refusal:
        refuse_ambiguous(environ(path))
    assert refusal.value.field == "path"


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1/models", "/v1/models/gpt-4o", "/v1/models/vendor/gpt-4o", "/v1/models/a.b..c",
        "/v1/models/a%2fb", "/v1/models/a%2Fb%2Fc",
        "/v1/models/.hidden", "/v1/models/...", "/v1/models/caf%C3%A9", "/v1/models/a%20b",
        "/v1/models?x=//&y=../%2f%00", "/v1/models/a:b@c",
    ],
)  # fmt: skip
def test_an_unusual_path_is_not_an_ambiguous_one(path: str) -> None:
    """Only what can be read in two ways is refused; a query may say what it likes."""
    refuse_ambiguous(environ(path))
