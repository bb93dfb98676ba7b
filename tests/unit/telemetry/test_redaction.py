"""Keys and signing secrets are taken out of text, and nothing else is."""

from __future__ import annotations

import logging

import orjson
import pytest

from router.auth.keys import derive_signing_secret, generate_key
from router.telemetry.logs import JsonFormatter
from router.telemetry.redaction import conceal, conceal_bytes, holds_secret

SIGNING_SECRET = derive_signing_secret(b"pepper" * 8, "key_1", "ab" * 32)


@pytest.mark.parametrize("env", ["live", "test", "a", "a2345678901234567"[:16]])
def test_every_key_that_can_be_made_is_found(env: str) -> None:
    """K6: the pattern here and the keys of `auth.keys` have the same shape."""
    key = generate_key(env)

    assert holds_secret(f"GET /v1/models/{key} HTTP/1.1")
    assert conceal(f"before {key} after") == "before … after"


def test_a_signing_secret_is_found() -> None:
    """K6: what signs requests is as secret as the key."""
    assert conceal(f"<{SIGNING_SECRET}>") == "<…>"


def test_all_of_them_are_taken_out() -> None:
    """One secret behind another, in text and in bytes."""
    text = f"{generate_key('live')},{SIGNING_SECRET},{generate_key('test')}"

    assert conceal(text) == "…,…,…"
    assert conceal_bytes(text.encode()) == "…,…,…".encode()


def test_a_key_with_a_wrong_or_missing_checksum_is_found() -> None:
    """Whoever mistypes a key has nearly told it."""
    key = generate_key("live")

    assert conceal(key[:-1] + "~") == "…_" + key[-6:-1] + "~"
    assert conceal(key[:-7]) == "…"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rtr_",
        "rsk_",
        "rtr_live_short",
        "rtr_live_" + "-" * 32,
        "rsk_" + "g" * 64,
        "order-17.b:3",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    """Ids, names and what merely begins like a key are left alone."""
    assert not holds_secret(text)
    assert conceal(text) == text
    assert conceal_bytes(text.encode()) == text.encode()


def test_a_log_line_holds_none() -> None:
    """K6: neither the message nor an extra field of a line tells a key."""
    key = generate_key("live")
    record = logging.makeLogRecord({"msg": "GET /%s", "args": (key,), "path": f"/{key}"})

    line = orjson.loads(JsonFormatter().format(record))

    assert (line["event"], line["path"]) == ("GET /…", "/…")
