"""What is signed, that nothing else shares it, and how a body carries its own signature."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth.signatures import (
    BODY_FIELD,
    SignedParts,
    blank_body_signature,
    canonical,
    shape_fault,
    sign,
    verify,
)

SECRET = "rsk_" + "0" * 64
PARTS = SignedParts("POST", "/v1/inference", "trace=1", "1800000000", "0123456789abcdef")
SIGNATURE = "af2b630d6c097cbfa7cce086bbc835467d51a113a8022f808e78aa090cdf4e40"

# Few and short values: collisions are looked for where they could hide.
TEXTS = st.sampled_from(["", "a", "/", "a/", "/a"])
BODIES = st.sampled_from([b"", b"a"])
PARTS_STRATEGY = st.builds(SignedParts, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS)


def test_the_canonical_string_is_the_documented_one() -> None:
    """Seven lines, in order, joined by line feeds."""
    digest = hashlib.sha256(b"{}").hexdigest().encode()
    assert canonical(PARTS, b"{}") == (
        b"ROUTER-HMAC-SHA256\n1800000000\n0123456789abcdef\nPOST\n/v1/inference\ntrace=1\n" + digest
    )


def test_the_signature_is_the_published_one() -> None:
    """The scheme can never change unnoticed: this vector, made with openssl, is in the docs."""
    assert sign(SECRET, PARTS, b"{}") == SIGNATURE


@given(one=PARTS_STRATEGY, other=PARTS_STRATEGY, bodies=st.tuples(BODIES, BODIES))
def test_distinct_requests_have_distinct_canonical_strings(
    one: SignedParts, other: SignedParts, bodies: tuple[bytes, bytes]
) -> None:
    """No request can be read as another: equal strings come from equal parts only."""
    same = (one, bodies[0]) == (other, bodies[1])
    assert (canonical(one, bodies[0]) == canonical(other, bodies[1])) == same


@given(lines=st.lists(st.sampled_from(["", "a", "/"]), min_size=5, max_size=7), data=st.data())
def test_the_same_lines_cut_into_other_parts_are_refused(
    lines: list[str], data: st.DataObject
) -> None:
    """However line breaks are smuggled into the parts, at most one cut of the text is signed."""
    cuts = sorted(data.draw(st.permutations(range(1, len(lines))))[:4])
    fields = ["\n".join(lines[i:j]) for i, j in zip([0, *cuts], [*cuts, None], strict=True)]
    timestamp, nonce, method, path, query = fields
    parts = SignedParts(method, path, query, timestamp, nonce)
    if len(lines) == 5:
        assert canonical(parts, b"").split(b"\n")[1:6] == [line.encode() for line in lines]
    else:
        with pytest.raises(ValueError, match="signed part"):
            canonical(parts, b"")


@pytest.mark.parametrize("name", ["method", "path", "query", "timestamp", "nonce"])
@pytest.mark.parametrize("text", ["a\nb", "\n", "é", "\ud800"])
def test_a_part_that_the_scheme_cannot_express_is_refused(name: str, text: str) -> None:
    """Line breaks and foreign characters are refused wherever they stand."""
    with pytest.raises(ValueError, match="signed part"):
        canonical(replace(PARTS, **{name: text}), b"")


def test_a_line_moved_between_path_and_query_is_refused() -> None:
    """The one way in which two requests could share a string is closed."""
    with pytest.raises(ValueError, match="signed part"):
        canonical(replace(PARTS, path="/v1\n/x", query=""), b"")


@given(
    parts=st.builds(
        SignedParts, *[st.text(st.characters(codec="ascii", exclude_characters="\n"))] * 5
    ),
    body=st.binary(),
)
def test_what_is_signed_verifies(parts: SignedParts, body: bytes) -> None:
    """A signature verifies with the secret, the parts and the body that it was made of."""
    assert verify(SECRET, parts, body, sign(SECRET, parts, body))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"path": "/v1/inference/"},
        {"query": ""},
        {"timestamp": "1800000001"},
        {"nonce": "0123456789abcdeF"},
    ],
)
def test_every_part_is_covered(changes: dict[str, str]) -> None:
    """Changing any one part breaks the signature."""
    assert not verify(SECRET, replace(PARTS, **changes), b"{}", SIGNATURE)


def test_body_and_secret_are_covered() -> None:
    """Another body or another secret breaks the signature."""
    assert verify(SECRET, PARTS, b"{}", SIGNATURE)
    assert not verify(SECRET, PARTS, b"{ }", SIGNATURE)
    assert not verify("rsk_" + "1" * 64, PARTS, b"{}", SIGNATURE)


@pytest.mark.parametrize("signature", ["", SIGNATURE[:-1], SIGNATURE.upper(), "é" * 64, "\ud800"])
def test_a_text_that_is_no_signature_does_not_verify(signature: str) -> None:
    """Any text can be compared, and only the right one matches."""
    assert not verify(SECRET, PARTS, b"{}", signature)


def test_good_shapes_have_no_fault() -> None:
    """The three values of a well-made request pass."""
    assert shape_fault(PARTS, SIGNATURE) is None


@pytest.mark.parametrize(
    "timestamp", ["", "-1", "+1", "1.5", " 1", "1\n", "1e9", "٣", "0x1", "1" * 13, "nan"]
)
def test_a_timestamp_is_digits_only(timestamp: str) -> None:
    """Only whole seconds in ASCII digits are a timestamp, and no more than fit."""
    fault = shape_fault(replace(PARTS, timestamp=timestamp), SIGNATURE)
    assert fault is not None
    assert fault.startswith("X-Router-Timestamp")


@pytest.mark.parametrize(
    "nonce", ["", "a" * 15, "a" * 129, "a" * 16 + "\n", "é" * 16, "a" * 15 + "."]
)
def test_a_nonce_has_its_length_and_alphabet(nonce: str) -> None:
    """A nonce is 16 to 128 characters that need no escaping anywhere."""
    fault = shape_fault(replace(PARTS, nonce=nonce), SIGNATURE)
    assert fault is not None
    assert fault.startswith("X-Router-Nonce")


@pytest.mark.parametrize("nonce", ["a" * 16, "A-z_0" + "9" * 123])
def test_nonces_at_both_bounds_are_good(nonce: str) -> None:
    """The bounds themselves are allowed."""
    assert shape_fault(replace(PARTS, nonce=nonce), SIGNATURE) is None


@pytest.mark.parametrize("signature", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "g" * 64])
def test_a_signature_is_64_lowercase_hex_digits(signature: str) -> None:
    """The fault names the place where the signature stood."""
    fault = shape_fault(PARTS, signature, name=BODY_FIELD)
    assert fault is not None
    assert fault.startswith("hmac_signature")


@given(before=st.binary(max_size=40), after=st.binary(max_size=40))
def test_blanking_undoes_filling_in(before: bytes, after: bytes) -> None:
    """The blanked body is byte for byte what the client signed."""
    head, tail = before + b'{"hmac_signature": "', b'"}' + after
    assert blank_body_signature(head + SIGNATURE.encode() + tail, SIGNATURE) == head + tail


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        (b'{"hmac_signature": ""}', SIGNATURE),
        (b'{"a": "%b", "hmac_signature": "%b"}' % ((SIGNATURE.encode(),) * 2), SIGNATURE),
        (b"f" * 65, "f" * 64),
        (b'{"hmac_signature": ""}', ""),
        (b'{"hmac_signature": "payload"}', "payload"),
        (b'{"hmac_signature": "\\u0061%b"}' % SIGNATURE[1:].encode(), SIGNATURE),
    ],
    ids=["absent", "twice", "overlapping", "empty", "no signature", "escaped"],
)
def test_an_ambiguous_body_cannot_be_blanked(body: bytes, signature: str) -> None:
    """Anything but exactly one plain occurrence of a signature is refused."""
    assert blank_body_signature(body, signature) is None
