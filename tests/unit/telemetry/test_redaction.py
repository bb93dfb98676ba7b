"""Keys and signing secrets are taken out of text, wherever they stand, and nothing else is."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth.keys import derive_signing_secret, generate_key
from router.telemetry.redaction import holds_secret, redact, redact_bytes

KEY = "rtr_live_0123456789ABCDEFGHIJKLMNOPQRSTUV_abcXYZ"
SIGNING_SECRET = "rsk_" + "0123456789abcdef" * 4

SECRETS = {
    "a key": KEY,
    "a key with a wrong checksum": KEY[:-1] + "0",
    "a key without its checksum": KEY[:-7],
    "a key of the shortest environment": KEY.replace("live", "a"),
    "a key of the longest environment": KEY.replace("live", "a123456789012345"),
    "a signing secret": SIGNING_SECRET,
}
AROUND = {
    "alone": "{}",
    "as a word": "the key {} is wrong",
    "in a path": "GET /v1/models/{}?x=1 HTTP/1.1",
    "in JSON": '{{"model":"{}"}}',
    "run together with letters": "xx{}yy",
    "behind a false start": "rtr_rtr_live_{}",
    "twice": "{0},{0}",
    "between other letters": "häé→{}😀",
    "over lines": "Traceback:\n  {}\n",
}
HARMLESS = [
    "",
    "order-17.b:3",
    "rtr_",
    "rsk_",
    "rtr_live_short",
    "rtr_live_…",
    "rtr_live_" + "-" * 32,
    KEY[:-8],
    KEY.replace("live", "LIVE"),
    KEY.replace("live", "a1234567890123456"),
    KEY.replace("rtr", "rt"),
    KEY.replace("_", "-"),
    SIGNING_SECRET[:-1],
    SIGNING_SECRET.upper(),
    "rsk_" + "g" * 64,
    "sk-of-some-provider-0123456789abcdef0123456789abcdef",
]
PIECES = ["rtr_", "rsk_", "live_", "production_", "_", "a", "…", "0" * 29, "b" * 32, "c" * 64, KEY]


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_is_found_wherever_it_stands(secret: str, around: str) -> None:
    """K6: nothing of the secret stays, everything around it does."""
    text = around.format(secret)
    assert holds_secret(text)
    assert redact(text) == around.format("…")
    assert redact_bytes(text.encode()) == around.format("…").encode()


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text: str) -> None:
    """Ids, names and what is almost of the right shape are left alone."""
    assert not holds_secret(text)
    assert redact(text) == text
    assert redact_bytes(text.encode()) == text.encode()


def test_all_of_them_are_taken_out() -> None:
    """One secret behind another, in text and in bytes."""
    text = f"{KEY},{SIGNING_SECRET},{KEY}"
    assert redact(text) == "…,…,…"
    assert redact_bytes(text.encode()) == "…,…,…".encode()


def test_a_mistyped_key_is_found() -> None:
    """Whoever mistypes a key has nearly told it; what is left over is the checksum."""
    assert redact(KEY[:-1] + "~") == "…_abcXY~"


@given(
    env=st.text(string.ascii_lowercase, min_size=1, max_size=16),
    before=st.text("rtsk_ab019 …", max_size=20),
    after=st.text("rtsk_ab019 …", max_size=20),
)
def test_every_key_that_can_be_made_is_concealed(env: str, before: str, after: str) -> None:
    """K6: the pattern here and the keys and secrets of `auth.keys` have the same shape."""
    key = generate_key(env)
    secret = derive_signing_secret(b"pepper", "key-1", key)
    for each, telling in ((key, key.split("_")[2]), (secret, secret[4:])):
        shown = redact(before + each + after)
        assert "…" in shown
        assert telling not in shown
        assert redact_bytes((before + each + after).encode()) == shown.encode()


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_concealed_text_holds_no_secret(text: str) -> None:
    """Once is enough, and what held none is unchanged."""
    shown = redact(text)
    assert not holds_secret(shown)
    assert (shown == text) == (not holds_secret(text))


def test_bytes_need_not_be_text() -> None:
    """A reply in whatever encoding loses its secrets and nothing else."""
    assert redact_bytes(b"\xff\xfe" + KEY.encode() + b"\x80") == b"\xff\xfe\xe2\x80\xa6\x80"
    assert redact_bytes(b"\xff rtr_ \x80") == b"\xff rtr_ \x80"
