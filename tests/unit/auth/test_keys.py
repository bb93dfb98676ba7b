"""The format, the checksum, the hash and the redaction of API keys."""

from __future__ import annotations

import hashlib
import hmac
import re
import string
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.auth.keys import (
    derive_signing_secret,
    generate_key,
    hash_key,
    is_well_formed,
    redact,
)

KEY = "rtr_live_0123456789ABCDEFabcdef0123456789_3fgUhl"
PEPPER = b"p" * 32
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
ENVS = st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True)


def test_a_generated_key_has_the_documented_shape() -> None:
    """A key is prefix, environment, 32 random characters and 6 of checksum."""
    assert re.fullmatch(r"rtr_live_[0-9A-Za-z]{32}_[0-9A-Za-z]{6}", generate_key("live"))


@given(env=ENVS)
def test_every_generated_key_is_well_formed(env: str) -> None:
    """What we generate, for any environment, we also accept."""
    assert is_well_formed(generate_key(env))


def test_two_keys_differ_everywhere_but_in_their_environment() -> None:
    """A thousand keys are a thousand different keys."""
    assert len({generate_key("test").split("_")[2] for _ in range(1000)}) == 1000


def test_the_checksum_is_crc32_in_base62() -> None:
    """The checksum can be recomputed from its documentation alone."""
    body, _, checksum = generate_key("live").rpartition("_")
    value = 0
    for digit in checksum:
        value = value * 62 + BASE62.index(digit)
    assert value == zlib.crc32(body.encode())


def test_a_known_key_stays_valid() -> None:
    """A key that was issued once is well-formed for ever."""
    assert is_well_formed(KEY)


@pytest.mark.parametrize("env", ["", "Live", "1a", "a" * 17, "a_b", "é", "live\n", "a-b"])
def test_an_environment_outside_the_format_is_refused(env: str) -> None:
    """No key is generated that its own shape check would refuse."""
    with pytest.raises(ValueError, match="environment"):
        generate_key(env)


@settings(max_examples=300)
@given(data=st.data())
def test_any_single_changed_character_is_refused(data: st.DataObject) -> None:
    """K4: a mistyped key is refused by shape or checksum alone; CRC-32 finds every such error."""
    key = generate_key(data.draw(ENVS))
    at = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.one_of(st.sampled_from(BASE62 + "_"), st.characters()))
    changed = key[:at] + other + key[at + 1 :]
    assert is_well_formed(changed) == (changed == key)


@settings(max_examples=300)
@given(data=st.data())
def test_swapped_neighbours_are_refused(data: st.DataObject) -> None:
    """K4: two neighbouring characters in the wrong order are found as well."""
    key = generate_key("live")
    at = data.draw(st.integers(0, len(key) - 2))
    changed = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    assert is_well_formed(changed) == (changed == key)


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "rtr_live",
        KEY[:-1],
        KEY + "0",
        KEY + "\n",
        " " + KEY,
        KEY.replace("live", "prod"),
        KEY.upper(),
        KEY.replace("0", "٠"),
        "x" * 1_000_000,
        "\ud800",
        KEY.replace("_3fgUhl", "_zzzzzz"),
    ],
)
def test_junk_is_not_well_formed(junk: str) -> None:
    """K4: near misses, foreign digits, huge and unencodable texts are all told apart."""
    assert not is_well_formed(junk)


def test_a_right_checksum_does_not_make_up_for_the_shape() -> None:
    """K4: a key with more behind it is refused even if the checksum covers that too."""
    value, digits = zlib.crc32(KEY.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    assert not is_well_formed(f"{KEY}_{digits}")


def test_the_stored_hash_is_a_peppered_hmac() -> None:
    """The hash is HMAC-SHA256 of the key under the pepper, raw."""
    assert hash_key(KEY, PEPPER) == hmac.new(PEPPER, KEY.encode(), hashlib.sha256).digest()


def test_another_pepper_gives_another_hash() -> None:
    """A hash is worth nothing without the pepper that made it."""
    assert hash_key(KEY, PEPPER) != hash_key(KEY, b"q" * 32)


def test_the_signing_secret_is_the_documented_derivation() -> None:
    """The secret is HMAC-SHA256 over context, key id and key hash, kept apart by NUL."""
    expected = hmac.new(PEPPER, b"request-signing\0key_1\0" + b"ab" * 32, hashlib.sha256)
    assert derive_signing_secret(PEPPER, "key_1", "ab" * 32) == "rsk_" + expected.hexdigest()


@pytest.mark.parametrize(
    "other",
    [(b"q" * 32, "key_1", "ab" * 32), (PEPPER, "key_2", "ab" * 32), (PEPPER, "key_1", "cd" * 32)],
)
def test_pepper_id_and_hash_each_change_the_signing_secret(other: tuple[bytes, str, str]) -> None:
    """A rotated key, another key and another pepper each have a secret of their own."""
    assert derive_signing_secret(*other) != derive_signing_secret(PEPPER, "key_1", "ab" * 32)


@given(env=ENVS)
def test_a_redacted_key_shows_its_environment_only(env: str) -> None:
    """K6: of a key a message may hold ``rtr_<env>_`` and nothing else."""
    assert redact(generate_key(env)) == f"rtr_{env}_…"


@given(text=st.text())
def test_text_that_is_no_key_is_redacted_whole(text: str) -> None:
    """K6: a secret of another kind, pasted in the wrong place, shows nothing of itself."""
    assert redact(text) == "…"


def test_a_mistyped_key_is_redacted_like_a_good_one() -> None:
    """K6: a wrong checksum does not make a key less secret."""
    assert redact(KEY.replace("_3fgUhl", "_zzzzzz")) == "rtr_live_…"
